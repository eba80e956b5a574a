// @ts-check
/**
 * What the page shows of a conversation. It is brought up to date as a whole: turns that have not changed are left
 * alone, and of an answer that grows only its last block is made anew.
 *
 * @typedef {import('./protocol.js').Conversation} Conversation
 * @typedef {import('./protocol.js').Turn} Turn
 * @typedef {import('./socket.js').LinkState} LinkState
 */

import { show } from './markdown.js';

const AT_END_PIXELS = 80;
const SPOKEN_CHARS_MAX = 1_500;

const KEYS = 'Enter sends, Shift+Enter begins a new line, Esc stops an answer.';
const KEYS_BUSY = 'You can send when the answer is there; Esc stops it.';
const GONE = 'session-unknown';

const LEVELS = {
  LIMITED: 'The service is busy and runs with limits.',
  ESSENTIAL: 'The service is under strain and does only what is essential.',
  EMERGENCY: 'The service cannot ask its language model: it answers what it was asked before, and says when it cannot.',
  MAINTENANCE: 'The service is under maintenance: you can read, but nothing can be sent now. What you write is kept.',
};
const FEATURES = {
  collaboration: 'seeing what others write as they do',
  swarm: 'several models working together',
  memory: 'recalling what was said long before',
  streaming: 'answers word by word',
}; // of the others a user notices nothing, or the level says it
const ANSWERERS = {
  cache: 'it was given before to the very same question',
  offline: 'it comes from the built-in offline model',
  apology: 'nobody could answer',
};

/** @template {keyof HTMLElementTagNameMap} K @returns {HTMLElementTagNameMap[K]} */
function made(/** @type {K} */ name, /** @type {object} */ properties = {}, /** @type {(Node | string)[]} */ ...inner) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...inner);
  return element;
}

/** @template T @param {T | undefined} one @returns {T[]} */
const some = (one) => (one === undefined ? [] : [one]);

/** @returns {any} */
export const byId = (/** @type {string} */ id) => document.getElementById(id);

/**
 * Make something be done in the next frame, for at most about a quarter of the time: what has become slow, as a long
 * block that grows, is done less often.
 */
export function paced(/** @type {() => void} */ does, clock = CLOCK) {
  let isDue = false;
  let restsUntil = 0;
  const now = () => {
    isDue = false;
    const began = clock.now();
    does();
    const ended = clock.now();
    restsUntil = ended + RESTS * (ended - began);
  };
  return () => {
    if (isDue) return;
    isDue = true;
    const wait = restsUntil - clock.now();
    if (wait > 0) clock.later(() => clock.frame(now), wait);
    else clock.frame(now);
  };
}
const RESTS = 3;
const CLOCK = {
  now: () => performance.now(),
  frame: (/** @type {() => void} */ does) => void requestAnimationFrame(does),
  later: (/** @type {() => void} */ does, /** @type {number} */ ms) => void setTimeout(does, ms),
};

/** @typedef {{item: HTMLElement, said: HTMLElement, answer: HTMLElement, text: HTMLElement, note: HTMLElement,
 *   actions: HTMLElement, edition: number, state: string}} Row */

export class View {
  /** @param {{again: (turn: Turn) => void, begin: (message: string) => void}} does */
  constructor(does) {
    this.does = does;
    /** @type {WeakMap<Turn, Row>} */
    this.rows = new WeakMap();
    this.wasAtEnd = true;
    this.isClosed = false;
    byId('main').addEventListener('scroll', () => this.#lookAtEnd(), { passive: true });
    // a keyboard on the screen, or a banner, takes room: the end stays in sight
    new ResizeObserver(() => this.wasAtEnd && this.toEnd()).observe(byId('main'));
    byId('latest').addEventListener('click', () => this.toEnd());
  }

  get isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = byId('main');
    return scrollHeight - scrollTop - clientHeight < AT_END_PIXELS;
  }

  toEnd() {
    byId('main').scrollTop = byId('main').scrollHeight;
  }

  #lookAtEnd() {
    byId('latest').hidden = this.wasAtEnd = this.isAtEnd;
  }

  /** Show the conversation as it is now. */
  render(/** @type {Conversation} */ conversation) {
    const { turns, open } = conversation;
    const { wasAtEnd } = this;
    const list = byId('turns');
    const fromEnd = byId('main').scrollHeight - byId('main').scrollTop;
    const firstWas = list.firstChild;
    let place = firstWas;
    for (const turn of turns) {
      const row = this.#row(turn);
      if (row.item === place) place = place.nextSibling;
      else list.insertBefore(row.item, place);
      if (row.edition !== turn.edition) this.#update(row, turn);
    }
    while (place) [place] = [place.nextSibling, place.remove()];
    byId('empty').hidden = turns.length > 0 || !conversation.isReady;
    byId('earlier').hidden = (conversation.first ?? 1) <= 1;
    this.#level(conversation);
    this.#composer(open, conversation.isReadOnly);
    if (wasAtEnd) this.toEnd();
    else if (firstWas && list.firstChild !== firstWas) byId('main').scrollTop = byId('main').scrollHeight - fromEnd;
    this.#lookAtEnd();
  }

  /** @returns {Row} */
  #row(/** @type {Turn} */ turn) {
    const known = this.rows.get(turn);
    if (known) return known;
    const said = made('div', { className: 'said' });
    const text = made('div', { className: 'text' });
    const speaker = turn.isOurs ? 'You' : 'Another guest';
    const answer = made('article', { className: 'answer' }, made('h2', { className: 'unseen' }, 'Orchestra'), text);
    const [note, actions] = [made('p', { className: 'note' }), made('p', { className: 'actions' })];
    const heading = made('h2', { className: turn.isOurs ? 'unseen' : 'guest' }, speaker);
    const item = made('li', { className: 'turn' }, made('article', {}, heading, said), answer, note, actions);
    const row = { item, said, answer, text, note, actions, edition: -1, state: '' };
    this.rows.set(turn, row);
    return row;
  }

  #update(/** @type {Row} */ row, /** @type {Turn} */ turn) {
    row.edition = turn.edition;
    row.said.textContent = turn.message;
    show(row.text, turn.text);
    row.item.dataset.state = turn.isStopping ? 'stopping' : turn.state;
    row.answer.ariaBusy = String(turn.state === 'running');
    row.answer.hidden = !turn.text && turn.state !== 'running';
    row.note.textContent = note(turn);
    row.note.hidden = !row.note.textContent;
    if (row.state === turn.state) return;
    this.#announce(row, turn);
    row.state = turn.state;
    row.actions.replaceChildren(...this.#actions(turn));
    row.actions.hidden = !row.actions.hasChildNodes();
  }

  /** @returns {Node[]} */
  #actions(/** @type {Turn} */ turn) {
    const isOver = turn.state === 'failed' || turn.state === 'stopped';
    if (turn.error?.kind === GONE) return [action('New conversation', () => this.does.begin(turn.message))];
    if (isOver && turn.key !== null) return [action('Send again', () => this.does.again(turn))];
    if (turn.state !== 'done' || !navigator.clipboard) return []; // there is none on plain HTTP
    const copy = action('Copy', async () => {
      await navigator.clipboard.writeText(turn.text);
      copy.textContent = 'Copied';
      setTimeout(() => (copy.textContent = 'Copy'), 2000);
    });
    copy.ariaLabel = 'Copy the answer';
    return [copy];
  }

  /** Tell those who do not see the page: of an answer its beginning, and then all of it, not word by word. */
  #announce(/** @type {Row} */ row, /** @type {Turn} */ turn) {
    if (!row.state || row.state === turn.state) return; // what is old is read in its place
    const spoken = row.text.textContent ?? '';
    if (turn.state === 'running') this.say('Answering');
    if (turn.state === 'done') {
      const isLong = spoken.length > SPOKEN_CHARS_MAX;
      this.say(isLong ? `${spoken.slice(0, SPOKEN_CHARS_MAX)} … the rest is in the conversation` : spoken);
    }
    if (turn.state === 'failed' || turn.state === 'stopped') this.say(row.note.textContent ?? '');
  }

  /** Have a screen reader say something when it has time. */
  say(/** @type {string} */ text) {
    byId('announcer').textContent = text;
  }

  #level(/** @type {Conversation} */ { level, off }) {
    const words = off.flatMap((each) => some(FEATURES[/** @type {keyof typeof FEATURES} */ (each)]));
    const what = words.length && level !== 'MAINTENANCE' ? ` For now without: ${words.join(', ')}.` : '';
    const text = level === 'NORMAL' ? '' : (LEVELS[/** @type {keyof typeof LEVELS} */ (level)] ?? level) + what;
    if (byId('banner').textContent !== text) byId('banner').textContent = text;
    byId('banner').dataset.level = level;
  }

  #composer(/** @type {Turn | undefined} */ open, /** @type {boolean} */ isReadOnly) {
    const isFocused = [byId('send'), byId('stop')].includes(document.activeElement);
    byId('send').hidden = !!open;
    byId('send').disabled = isReadOnly || this.isClosed;
    byId('stop').hidden = !open;
    byId('stop').disabled = !!open?.isStopping;
    const keys = open ? KEYS_BUSY : KEYS;
    if (byId('keys').textContent !== keys) byId('keys').textContent = keys;
    if (isFocused) byId('message').focus({ preventScroll: true }); // a button that is hidden loses it
  }

  /** Tell how the connection is; `why` is what the service said when it refused it. */
  status(/** @type {LinkState} */ state, /** @type {string} */ why, isGone = false) {
    const seconds = state.kind === 'waiting' ? Math.max(1, Math.ceil((state.until - Date.now()) / 1000)) : 0;
    const text = {
      connecting: 'Connecting …',
      ready: '',
      asleep: 'Resting until you come back.',
      closed: why,
      waiting: `${why || 'Connection lost'}: reconnecting in ${seconds} s.`,
    }[state.kind];
    if (byId('status').textContent !== text) byId('status').textContent = text;
    this.isClosed = state.kind === 'closed';
    const kind = document.body.dataset.link;
    document.body.dataset.link = state.kind;
    byId('fresh').hidden = state.kind !== 'closed' || !isGone;
    byId('retry').hidden = state.kind !== 'waiting';
    if (kind === state.kind) return;
    if (state.kind === 'waiting' && kind === 'ready') this.say('Connection lost, reconnecting');
    if (state.kind === 'ready' && kind !== undefined) this.say('Connected');
    if (state.kind === 'closed') this.say(why);
  }

  /** List the conversations of this browser, the one that is open marked. */
  conversations(/** @type {{id: string, title: string}[]} */ known, /** @type {string} */ current) {
    const links = known.map(({ id, title }) => {
      const link = made('a', { href: `#/${id}` }, title);
      if (id === current) link.ariaCurrent = 'page';
      return made('li', {}, link);
    });
    byId('conversations').replaceChildren(...links);
    byId('none').hidden = known.length > 0;
    byId('forget').hidden = !known.length;
  }
}

function action(/** @type {string} */ label, /** @type {() => void} */ does) {
  return made('button', { type: 'button', className: 'quiet', onclick: does }, label);
}

/** What there is to say about a turn besides its texts. */
function note(/** @type {Turn} */ turn) {
  if (turn.isStopping) return 'Stopping …';
  if (turn.state === 'unsent') return 'Will be sent when there is a connection.';
  if (turn.state === 'waiting') return `The service cannot answer now: sent again in ${Math.ceil(turn.wait)} s.`;
  if (turn.state === 'stopped') return 'Stopped: this is not part of the conversation.';
  if (turn.error?.kind === GONE) return 'This conversation was deleted, or has expired: nothing can be said in it.';
  if (turn.state === 'failed') return `${turn.error?.title}: ${turn.error?.detail}.`;
  if (turn.state !== 'done') return '';
  return turn.degraded.map((each) => leftOut(each, turn.engine)).join(' ');
}

function leftOut(/** @type {string} */ part, /** @type {string} */ engine) {
  if (part === 'memory') return 'Answered without recalling what was said long before.';
  if (part === 'history') return 'Too long to be part of what later answers know.';
  if (part === 'session') return 'Kept, though a next answer may not know of it for a moment.';
  if (part === 'streaming') return 'Answered in one piece, not word by word.';
  const who = ANSWERERS[/** @type {keyof typeof ANSWERERS} */ (engine)] ?? 'another model stood in';
  return `The usual model did not answer: ${who}.`;
}
