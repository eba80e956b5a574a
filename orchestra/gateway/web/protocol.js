// @ts-check
/**
 * A conversation as its frames make it (orchestra/frames.py): no page, no socket, no clock.
 *
 *   contract:  `say`, `again` and `stop` are what the user does, `received` and `lost` what the connection does;
 *              each returns the frames to send now, none while the connection is not ready
 *   state:     `turns`, in the order of the page; `level` and what it switches off
 *   behaviour: after `ready`, what is unfinished is picked up: turns are resumed behind the last number that was seen,
 *              messages that were not accepted, or whose turn was lost, are sent again under the same id. What failed
 *              and may go well the next time is `postponed`, a few times, for whoever has a clock to `retry` it
 *
 * So each piece of an answer is taken once, whatever was cut where, and nothing is said twice.
 *
 * @typedef {'unsent' | 'asked' | 'running' | 'waiting' | 'done' | 'failed' | 'stopped'} TurnState
 * @typedef {{type: string, [field: string]: any}} Frame
 * @typedef {object} Turn
 * @property {string | null} key  our own id of the message, where it is ours
 * @property {string | null} id  the turn's, once it is known
 * @property {string} message
 * @property {boolean} isOurs  false where another client said it just now
 * @property {string} text  of the answer, as far as it is known
 * @property {number} seq  the last number of its log that was taken
 * @property {TurnState} state
 * @property {boolean} isStopping
 * @property {number} failures  how often it was sent again by itself
 * @property {number} wait  seconds until then
 * @property {string[]} degraded  what the answer had to do without
 * @property {string} engine  who answered
 * @property {{kind: string, title: string, detail: string} | null} error
 * @property {number} edition  grows with each change
 */

export const PROTOCOL = 1;
const FAILURES_MAX = 3;
const OPEN = ['unsent', 'asked', 'running', 'waiting'];

/** @returns {Turn} */
function turn(/** @type {Partial<Turn>} */ fields) {
  return {
    key: null, id: null, message: '', isOurs: true, text: '', seq: 0, state: 'running', isStopping: false,
    failures: 0, wait: 0, degraded: [], engine: '', error: null, edition: 0, ...fields,
  };
}

export class Conversation {
  /** @param {string} clientId  our own, as the connection names us */
  constructor(clientId) {
    this.clientId = clientId;
    /** @type {Turn[]} */
    this.turns = [];
    this.level = 'NORMAL';
    /** @type {string[]} */
    this.off = [];
    this.isReady = false;
    /** Those that are to be sent again after their `wait`; to be taken away by whoever sees to it. @type {Turn[]} */
    this.postponed = [];
    /** Number of the first turn that is shown; null before any is. @type {number | null} */
    this.first = null;
    /** Why the connection is about to be closed. @type {Frame | null} */
    this.told = null;
    /** Whether only a new connection can help. */
    this.isStuck = false;
    this.isForeign = false;
  }

  /** Our own turn that has no answer yet. @returns {Turn | undefined} */
  get open() {
    return this.turns.find((each) => each.key !== null && OPEN.includes(each.state));
  }

  get isReadOnly() {
    return this.level === 'MAINTENANCE';
  }

  /** Take up what an earlier page of this conversation left unfinished. */
  restore(/** @type {{key: string, message: string, isFailed: boolean}[]} */ pending) {
    for (const { key, message, isFailed } of pending) {
      const error = isFailed ? { kind: '', title: 'Not answered', detail: 'you may send it again' } : null;
      this.turns.push(turn({ key, message, error, state: isFailed ? 'failed' : 'asked' })); // it may have been accepted
    }
  }

  /** @returns {Frame[]} */
  say(/** @type {string} */ message, /** @type {string} */ key) {
    this.turns.push(turn({ key, message, state: 'unsent' }));
    return this.#unsent();
  }

  /** Send a message again whose turn failed or was stopped: under the same id, so it is said once. @returns {Frame[]} */
  again(/** @type {Turn} */ one) {
    one.failures = 0;
    return this.#anew(one);
  }

  /** Send a postponed message, unless it was stopped meanwhile. @returns {Frame[]} */
  retry(/** @type {Turn} */ one) {
    if (one.state === 'waiting') this.#unsend(one);
    return this.#unsent();
  }

  /** Stop a turn; one that the service cannot know of is stopped here. @returns {Frame[]} */
  stop(/** @type {Turn} */ one) {
    if (one.state === 'unsent' || one.state === 'waiting') this.#end(one, 'stopped');
    else this.#change(one, { isStopping: true });
    return this.isReady && one.state === 'running' && one.id ? [{ type: 'cancel', turn_id: one.id }] : [];
  }

  /** Take that the connection is gone. */
  lost() {
    this.isReady = this.isStuck = false;
    this.told = null;
  }

  /** Take a frame of the service. @returns {Frame[]} */
  received(/** @type {Frame} */ frame) {
    switch (frame.type) {
      case 'ready': return this.#ready(frame);
      case 'accepted': return this.#accepted(frame);
      case 'error': return this.#error(frame);
      case 'started': this.#started(frame); return [];
      case 'delta': this.#grown(frame); return [];
      case 'done': this.#done(frame); return [];
      case 'level': this.level = frame.level; this.off = frame.off; return [];
      default: return []; // pong, goodbye, and what a newer service may say
    }
  }

  /** Take turns that precede those that are shown, lowest number first. */
  preceded(/** @type {any[]} */ stored) {
    const fresh = stored.filter((each) => !this.#byId(each.id));
    this.turns.unshift(...fresh.map(fromStored));
    if (stored.length) this.first = stored[0].number;
  }

  #ready(/** @type {Frame} */ ready) {
    this.isReady = true;
    this.isForeign = ready.protocol !== PROTOCOL;
    [this.level, this.off] = [ready.level, ready.off];
    this.#catchUp(ready.history, ready.version);
    for (const each of this.turns) if (each.state === 'asked') this.#change(each, { state: 'unsent' });
    const frames = this.#unsent();
    for (const { id, seq, isStopping } of this.turns.filter((each) => each.state === 'running')) {
      frames.push({ type: 'resume', turn_id: id, after: seq });
      if (isStopping) frames.push({ type: 'cancel', turn_id: id });
    }
    for (const { turn_id } of ready.live) {
      if (!this.#byId(turn_id)) frames.push({ type: 'resume', turn_id, after: 0 });
    }
    return frames;
  }

  /** Take the last turns of the conversation; where some are missing between, begin with these. */
  #catchUp(/** @type {any[]} */ stored, /** @type {number} */ version) {
    if (!stored.length) this.first ??= version + 1;
    if (!stored.length) return;
    const isKnown = stored.some((each) => this.#byId(each.id));
    if (!isKnown && stored[0].number > 1) this.turns = this.turns.filter((each) => each.state !== 'done');
    if (!isKnown || this.first === null) this.first = stored[0].number;
    const ids = new Set(stored.map((each) => each.id));
    let at = isKnown ? this.turns.findIndex((each) => each.id && ids.has(each.id)) : this.#finished();
    for (const each of stored) {
      const known = this.#byId(each.id);
      if (known) this.#settle(known, each);
      else this.turns.splice(at, 0, fromStored(each));
      at = known ? this.turns.indexOf(known) + 1 : at + 1;
    }
  }

  /** How many finished turns the page begins with. */
  #finished() {
    const index = this.turns.findIndex((each) => each.state !== 'done');
    return index < 0 ? this.turns.length : index;
  }

  #accepted(/** @type {Frame} */ frame) {
    const one = this.#byKey(frame.id);
    if (!one) return [];
    const twin = this.#byId(frame.turn_id);
    if (twin && twin !== one) { // it was said before this page was loaded, or came before it was known as ours
      twin.key = one.key;
      this.turns.splice(this.turns.indexOf(one), 1);
      this.#change(twin, twin.state === 'done' ? {} : { isOurs: true, isStopping: one.isStopping });
      return one.isStopping ? [{ type: 'cancel', turn_id: frame.turn_id }] : [];
    }
    this.#change(one, { id: frame.turn_id, state: 'running', seq: 0 });
    return one.isStopping ? [{ type: 'cancel', turn_id: frame.turn_id }] : [];
  }

  #started(/** @type {Frame} */ frame) {
    let one = this.#byId(frame.turn_id);
    if (!one) {
      one = turn({ id: frame.turn_id, isOurs: frame.client_id === this.clientId });
      this.turns.push(one);
    }
    if (one.state === 'done' || frame.seq <= one.seq) return;
    this.#change(one, { message: frame.message, text: '', seq: frame.seq, state: 'running', error: null });
  }

  #grown(/** @type {Frame} */ frame) {
    const one = this.#byId(frame.turn_id);
    if (one?.state === 'running' && frame.seq > one.seq) {
      this.#change(one, { text: one.text + frame.text, seq: frame.seq });
    }
  }

  #done(/** @type {Frame} */ frame) {
    const one = this.#byId(frame.turn_id);
    if (one) this.#settle(one, frame.reply);
  }

  #error(/** @type {Frame} */ frame) {
    const one = frame.id ? this.#byKey(frame.id) : this.#byId(frame.turn_id);
    if (!frame.id && !frame.turn_id) this.told = frame;
    if (!one || !['asked', 'running'].includes(one.state)) return [];
    if (frame.id) return this.#refused(one, frame);
    if (frame.seq == null) return this.#notResumed(one, frame);
    if (frame.seq > one.seq) return this.#brokenOff(one, frame);
    return [];
  }

  /** The message was not accepted. @returns {Frame[]} */
  #refused(/** @type {Turn} */ one, /** @type {Frame} */ frame) {
    if (one.isStopping) this.#end(one, 'stopped');
    else if (frame.kind === 'shutting-down') this.#unsend(one); // for the instance that answers next
    else this.#postpone(one, frame);
    return [];
  }

  /** The log of the turn ends without an answer. */
  #brokenOff(/** @type {Turn} */ one, /** @type {Frame} */ frame) {
    if (frame.kind === 'turn-cancelled' || one.isStopping) this.#end(one, 'stopped');
    else if (one.key !== null && frame.kind === 'turn-lost') return this.#lost(one, frame);
    else if (one.key !== null && frame.kind === 'shutting-down') this.#unsend(one);
    else if (one.key !== null && (!one.text || frame.kind === 'store-unavailable')) this.#postpone(one, frame);
    else this.#fail(one, frame); // never silently after the first word, unless it may be durable for all that
    return [];
  }

  /** The turn could not be followed, or stopped. */
  #notResumed(/** @type {Turn} */ one, /** @type {Frame} */ frame) {
    const isGone = frame.kind === 'turn-unknown' || frame.kind === 'turn-lost';
    if (isGone && one.isStopping) this.#end(one, 'stopped');
    else if (isGone && one.key !== null) return this.#lost(one, frame);
    else if (isGone) this.turns.splice(this.turns.indexOf(one), 1);
    else if (frame.retryable) this.isStuck = true;
    else this.#fail(one, frame);
    return [];
  }

  /** @returns {Frame[]} */
  #unsent() {
    if (!this.isReady) return [];
    const waiting = this.turns.filter((each) => each.state === 'unsent');
    for (const each of waiting) this.#change(each, { state: 'asked' });
    return waiting.map((each) => ({ type: 'message', id: each.key, message: each.message }));
  }

  #unsend(/** @type {Turn} */ one) {
    this.#change(one, { id: null, state: 'unsent', seq: 0, error: null, isStopping: false });
  }

  /** What ran it is gone. @returns {Frame[]} */
  #lost(/** @type {Turn} */ one, /** @type {Frame} */ frame) {
    if (one.failures >= FAILURES_MAX) this.#fail(one, frame);
    else one.failures++;
    return one.state === 'failed' ? [] : this.#anew(one);
  }

  /** @returns {Frame[]} */
  #anew(/** @type {Turn} */ one) {
    this.turns.splice(this.turns.indexOf(one), 1);
    this.turns.push(one);
    this.#unsend(one);
    return this.#unsent();
  }

  #postpone(/** @type {Turn} */ one, /** @type {Frame} */ frame) {
    if (!frame.retryable || one.failures >= FAILURES_MAX) return this.#fail(one, frame);
    const wait = frame.retry_after_seconds ?? 2 ** one.failures;
    this.#change(one, { id: null, state: 'waiting', seq: 0, failures: one.failures + 1, wait });
    this.postponed.push(one);
  }

  #fail(/** @type {Turn} */ one, /** @type {Frame} */ { kind, title, detail }) {
    this.#change(one, { error: { kind, title, detail } });
    this.#end(one, 'failed');
  }

  #settle(/** @type {Turn} */ one, /** @type {any} */ { reply, degraded, engine }) {
    this.#change(one, { text: reply, degraded, engine, error: null });
    this.#end(one, 'done');
  }

  #end(/** @type {Turn} */ one, /** @type {TurnState} */ state) {
    this.#change(one, { state, isStopping: false, seq: 0 }); // whoever sends it again begins its log anew
  }

  #change(/** @type {Turn} */ one, /** @type {Partial<Turn>} */ fields) {
    Object.assign(one, fields, { edition: one.edition + 1 });
  }

  #byId(/** @type {string} */ id) {
    return this.turns.find((each) => each.id === id && id);
  }

  #byKey(/** @type {string} */ key) {
    return this.turns.find((each) => each.key === key);
  }
}

function fromStored(/** @type {any} */ { id, message, reply, degraded, engine }) {
  return turn({ id, message, text: reply, degraded, engine, state: 'done' });
}
