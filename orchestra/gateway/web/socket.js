// @ts-check
/**
 * A connection that comes back: after growing, random waits, at once where there is reason to hope.
 *
 * A line that is cut says nothing, so silence is answered with a `ping`, and too much of it ends the connection. A page
 * that nobody looks at sends none: the service may close what idles, and it is opened again with the next look.
 *
 * @typedef {import('./protocol.js').Frame} Frame
 * @typedef {{kind: 'connecting' | 'ready' | 'asleep' | 'closed'} | {kind: 'waiting', until: number}} LinkState
 */

const FIRST_MS = 500;
const LONGEST_MS = 30_000;
const STABLE_MS = 10_000;
const READY_MS_MAX = 15_000;
const SILENCE_MS_MAX = 20_000;
const PONG_MS_MAX = 10_000;
const IDLE = 1001;

/** Full jitter over an exponential ceiling, but for a floor below which a wait is none (AWS Architecture Blog, 2015). */
export function waitMs(/** @type {number} */ failures, /** @type {() => number} */ random) {
  const ceiling = Math.min(LONGEST_MS, FIRST_MS * 2 ** failures);
  return FIRST_MS / 2 + random() * (ceiling - FIRST_MS / 2);
}

export class Link {
  /**
   * @param {string} url
   * @param {{frame: (frame: Frame) => void, lost: () => void, state: (state: LinkState) => void,
   *   refused: () => void}} told
   */
  constructor(url, told) {
    this.url = url;
    this.told = told;
    this.failures = 0;
    this.wait = 0; // what the service asked for
    /** @type {WebSocket | null} */
    this.socket = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    this.readyAt = 0;
    this.isAccepted = false;
    this.isClosed = false;
    this.listening = new AbortController();
    const { signal } = this.listening;
    addEventListener('online', () => this.hurry(), { signal });
    addEventListener('pagehide', () => this.sleep(), { signal }); // what the browser keeps to come back to
    document.addEventListener('visibilitychange', () => document.hidden || this.hurry(), { signal });
    addEventListener('pageshow', () => this.hurry(), { signal });
    this.connect();
  }

  send(/** @type {Frame} */ frame) {
    this.socket?.send(JSON.stringify(frame));
  }

  /** Connect now, where there is no connection. */
  hurry() {
    if (!this.socket && !this.isClosed) this.connect();
  }

  /** Drop the connection, and come back. */
  reconnect() {
    if (this.socket) this.drop();
  }

  /** The instance is going; come back after so many seconds. */
  goodbye(/** @type {number} */ seconds, /** @type {() => boolean} */ isBusy) {
    this.wait = Date.now() + seconds * 1000;
    const { socket } = this;
    setTimeout(() => socket === this.socket && !isBusy() && this.reconnect(), seconds * 1000);
  }

  close() {
    this.isClosed = true;
    this.listening.abort();
    this.forget();
    this.told.state({ kind: 'closed' });
  }

  sleep() {
    if (this.isClosed) return;
    this.forget();
    this.told.lost();
    this.told.state({ kind: 'asleep' });
  }

  connect() {
    this.forget();
    this.told.state({ kind: 'connecting' });
    const socket = (this.socket = new WebSocket(this.url));
    this.isAccepted = false;
    socket.onopen = () => (this.isAccepted = true);
    socket.onmessage = ({ data }) => this.take(JSON.parse(data));
    socket.onclose = ({ code }) => this.drop(code);
    this.timer = setTimeout(() => this.drop(), READY_MS_MAX);
  }

  take(/** @type {Frame} */ frame) {
    if (frame.type === 'ready') {
      this.readyAt = Date.now();
      this.told.state({ kind: 'ready' });
    }
    if (this.readyAt) this.watch();
    this.told.frame(frame);
  }

  /** Ask when it has been silent for long; who does not answer then is gone. */
  watch() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (document.hidden) return this.watch();
      this.send({ type: 'ping' });
      this.timer = setTimeout(() => this.drop(), PONG_MS_MAX);
    }, SILENCE_MS_MAX);
  }

  drop(/** @type {number | undefined} */ code = undefined) {
    const wasStable = this.readyAt && Date.now() - this.readyAt > STABLE_MS;
    this.forget();
    this.told.lost();
    if (this.isClosed) return; // by whoever was told
    if (code === IDLE && document.hidden) return this.told.state({ kind: 'asleep' });
    this.failures = wasStable ? 0 : this.failures;
    const until = Math.max(this.wait, Date.now() + waitMs(this.failures++, Math.random));
    this.wait = 0;
    this.timer = setTimeout(() => this.connect(), until - Date.now());
    this.told.state({ kind: 'waiting', until });
    if (!this.isAccepted) this.told.refused(); // what came instead, no page is told
  }

  forget() {
    clearTimeout(this.timer);
    this.readyAt = 0;
    if (!this.socket) return;
    this.socket.onmessage = this.socket.onclose = null;
    this.socket.close();
    this.socket = null;
  }
}
