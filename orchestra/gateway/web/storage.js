// @ts-check
/**
 * What this browser keeps: which conversations there were, the text that is being written, and messages that have no
 * answer yet. Each message has an entry of its own, so two windows of one conversation do not overwrite each other's.
 *
 * @typedef {{id: string, title: string}} Known
 */

const CONVERSATIONS = 'orchestra.conversations';
const CONVERSATIONS_MAX = 50;
const TITLE_CHARS_MAX = 80;

/** A browser may refuse to keep anything: then all of it lives as long as the page. @type {Storage | Map<string, string>} */
const kept = (() => {
  try {
    localStorage.setItem('orchestra.probe', '');
    localStorage.removeItem('orchestra.probe');
    return localStorage;
  } catch {
    return new Map();
  }
})();

/** An id that nobody guesses; crypto.randomUUID would want https, which a service at home may not have. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** An id of a message: in the order of time, as `pending` returns them. */
export function newKey() {
  return `${Date.now().toString(36)}-${newId()}`;
}

function read(/** @type {string} */ name) {
  return (kept instanceof Map ? kept.get(name) : kept.getItem(name)) ?? '';
}

function write(/** @type {string} */ name, /** @type {string} */ text) {
  try {
    if (kept instanceof Map) kept.set(name, text);
    else if (text) kept.setItem(name, text);
    else kept.removeItem(name);
  } catch { /* it is full: the page goes on without */ }
}

/** Our name as a client: all windows of a browser are one. */
export function clientId() {
  const known = read('orchestra.client');
  const id = /^[0-9a-f]{32}$/.test(known) ? known : newId();
  write('orchestra.client', id);
  return id;
}

/** The conversations of this browser, last one first. @returns {Known[]} */
export function conversations() {
  try {
    const found = JSON.parse(read(CONVERSATIONS) || '[]');
    return found.filter((/** @type {any} */ each) => typeof each?.id === 'string' && typeof each.title === 'string');
  } catch {
    return [];
  }
}

/** Put a conversation first, and return its title: how it began, as far as this browser knows. */
export function remember(/** @type {string} */ id, /** @type {string} */ message) {
  const known = conversations();
  const title = known.find((each) => each.id === id)?.title ?? message.trim().slice(0, TITLE_CHARS_MAX);
  const others = known.filter((each) => each.id !== id);
  if (title) write(CONVERSATIONS, JSON.stringify([{ id, title }, ...others].slice(0, CONVERSATIONS_MAX)));
  return title;
}

/** Forget which conversations there were; they themselves stay. */
export function forget() {
  write(CONVERSATIONS, '');
}

/** What is being written in a conversation. */
export function draft(/** @type {string} */ id) {
  return read(`orchestra.draft/${id}`);
}

export function keepDraft(/** @type {string} */ id, /** @type {string} */ text) {
  write(`orchestra.draft/${id}`, text);
}

/**
 * Messages of a conversation that have no answer yet, oldest first.
 * @typedef {{key: string, message: string, isFailed: boolean}} Pending
 * @returns {Pending[]}
 */
export function pending(/** @type {string} */ id) {
  const prefix = `orchestra.pending/${id}/`;
  const names = (kept instanceof Map ? [...kept.keys()] : Object.keys(kept)).filter((each) => each.startsWith(prefix));
  return names.sort().flatMap((each) => parsed(each, prefix.length));
}

/** @returns {Pending[]} */
function parsed(/** @type {string} */ name, /** @type {number} */ prefix) {
  try {
    const { message, isFailed } = JSON.parse(read(name));
    return typeof message === 'string' ? [{ key: name.slice(prefix), message, isFailed: !!isFailed }] : [];
  } catch {
    return [];
  }
}

export function keepPending(
  /** @type {string} */ id, /** @type {string} */ key, /** @type {string} */ message, isFailed = false,
) {
  write(`orchestra.pending/${id}/${key}`, JSON.stringify({ message, isFailed }));
}

export function dropPending(/** @type {string} */ id, /** @type {string} */ key) {
  write(`orchestra.pending/${id}/${key}`, '');
}
