// @ts-check
/** Brings together the conversation, its connection, the page, and what this browser keeps of it. */

import { Conversation } from './protocol.js';
import { Link } from './socket.js';
import * as storage from './storage.js';
import { View, byId, paced } from './view.js';

const ID = /^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$/;
const MESSAGE_CHARS_MAX = 100_000;
const PAGE_TURNS = 20;

const clientId = storage.clientId();
const view = new View({ again, begin });
let sessionId = '';
let conversation = new Conversation(clientId);
/** @type {Link | undefined} */
let link;
/** @type {import('./socket.js').LinkState} */
let state = { kind: 'connecting' };
let why = '';
let isGone = false;

/** Show what has changed, once in a frame. */
const changed = paced(() => view.render(conversation));

function send(/** @type {import('./protocol.js').Frame[]} */ frames) {
  for (const frame of frames) link?.send(frame);
  changed();
}

/** Keep no longer what needs no answer any more, and what failed as failed. */
function settle() {
  for (const { key, message, state } of conversation.turns) {
    if (key && (state === 'done' || state === 'stopped')) storage.dropPending(sessionId, key);
    if (key && state === 'failed') storage.keepPending(sessionId, key, message, true);
  }
}

/** Open the conversation that the address names, or a new one. */
function open() {
  const named = location.hash.replace(/^#\//, '');
  if (!ID.test(named)) history.replaceState(null, '', `#/${storage.newId()}`);
  link?.close();
  sessionId = location.hash.slice(2);
  const current = (conversation = new Conversation(clientId));
  conversation.restore(storage.pending(sessionId));
  byId('message').value = storage.draft(sessionId);
  fit();
  for (const format of ['markdown', 'json']) {
    byId(`export-${format}`).href = `chat/v2/sessions/${sessionId}/export?format=${format}`;
  }
  const url = new URL(`chat/ws/${clientId}/${sessionId}`, document.baseURI);
  url.protocol = url.protocol.replace('http', 'ws');
  url.hash = '';
  why = '';
  isGone = false;
  delete document.body.dataset.link;
  link = new Link(url.href, {
    frame: (frame) => take(current, frame), lost: () => lost(current), state: told, refused: () => explain(current),
  });
  changed();
  byId('message').focus();
}

function told(/** @type {typeof state} */ now) {
  state = now;
  if (now.kind === 'ready') why = '';
  view.status(state, why, isGone);
}

/** Learn why there is no connection: the same address, asked by HTTP, says what a socket keeps to itself. */
async function explain(/** @type {Conversation} */ current) {
  const answer = await fetch(`chat/ws/${clientId}/${sessionId}`).catch(() => null);
  const problem = answer?.status === 503 ? await answer.json().catch(() => null) : null;
  if (current !== conversation || state.kind !== 'waiting') return;
  why = problem ? `${problem.title}: ${problem.detail}` : '';
  view.status(state, why);
}

function take(/** @type {Conversation} */ current, /** @type {import('./protocol.js').Frame} */ frame) {
  send(current.received(frame));
  for (const one of current.postponed.splice(0)) {
    setTimeout(() => current === conversation && send(current.retry(one)), one.wait * 1000);
  }
  if (frame.type !== 'delta') settle();
  if (frame.type === 'goodbye') link?.goodbye(frame.reconnect_after_seconds, () => current.open?.state === 'running');
  if (frame.type === 'ready') name();
  if (current.isForeign) refuse('This page is of another version of the service: load it again.');
  else if (current.isStuck) link?.reconnect();
}

function lost(/** @type {Conversation} */ current) {
  const { isReady, told } = current;
  current.lost();
  isGone = told?.kind === 'session-unknown';
  if (isGone) refuse('This conversation was deleted, or has expired.');
  else if (told && !told.retryable && !isReady) refuse(`${told.title}: ${told.detail}.`);
  changed();
}

/** Do without a connection; what was said can still be read. */
function refuse(/** @type {string} */ reason) {
  why = reason;
  link?.close();
}

/** Name the conversation by how it began, and keep it among those of this browser. */
function name() {
  const title = storage.remember(sessionId, conversation.turns[0]?.message ?? '');
  document.title = title ? `${title} · AI Orchestra` : 'AI Orchestra';
}

/** Fetch what was said before that which is shown. */
async function earlier() {
  const current = conversation;
  const address = `chat/v2/sessions/${sessionId}?before=${current.first ?? 'end'}&limit=${PAGE_TURNS}`;
  try {
    const answer = await fetch(address);
    if (!answer.ok) throw new Error(String(answer.status));
    current.preceded((await answer.json()).turns);
  } catch {
    view.say('Earlier messages cannot be had now: try again');
  }
  if (current === conversation) changed();
}

function fit() {
  const box = byId('message');
  box.style.height = 'auto';
  box.style.height = `${box.scrollHeight}px`;
}

function submit() {
  const box = byId('message');
  const message = box.value;
  if (!message.trim() || conversation.open || conversation.isReadOnly || state.kind === 'closed') return;
  const excess = [...message].length - MESSAGE_CHARS_MAX;
  box.setCustomValidity(excess > 0 ? `The message is too long by ${excess} characters: shorten it.` : '');
  if (!box.reportValidity()) return;
  box.value = '';
  storage.keepDraft(sessionId, '');
  fit();
  const key = storage.newKey();
  storage.keepPending(sessionId, key, message);
  send(conversation.say(message, key));
  link?.hurry();
  name();
  view.render(conversation);
  view.toEnd();
}

function again(/** @type {import('./protocol.js').Turn} */ turn) {
  if (isGone) return begin(turn.message);
  if (conversation.open || conversation.isReadOnly) return;
  if (turn.key) storage.keepPending(sessionId, turn.key, turn.message);
  byId('message').focus();
  send(conversation.again(turn));
}

function stop() {
  const { open } = conversation;
  if (open && !open.isStopping) send(conversation.stop(open));
  settle();
}

/** Begin another conversation, with something to be said in it. */
function begin(message = '') {
  byId('drawer').close();
  const id = storage.newId();
  if (message) storage.keepDraft(id, message);
  location.hash = `#/${id}`;
}

byId('form').addEventListener('submit', (/** @type {Event} */ event) => {
  event.preventDefault();
  submit();
});
byId('message').addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
byId('message').addEventListener('input', () => {
  byId('message').setCustomValidity('');
  storage.keepDraft(sessionId, byId('message').value);
  fit();
});
addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && !byId('drawer').open && !event.isComposing) stop();
});
byId('stop').addEventListener('click', stop);
byId('retry').addEventListener('click', () => link?.hurry());
byId('earlier').addEventListener('click', earlier);
byId('new').addEventListener('click', () => begin());
byId('fresh').addEventListener('click', () => begin(byId('message').value));
byId('menu').addEventListener('click', () => {
  view.conversations(storage.conversations(), sessionId);
  byId('copy-link').hidden = !navigator.clipboard;
  byId('drawer').showModal();
});
byId('close').addEventListener('click', () => byId('drawer').close());
byId('drawer').addEventListener('click', (/** @type {MouseEvent} */ { target }) => {
  const isLink = target instanceof Element && target.closest('a:not([download])');
  if (target === byId('drawer') || isLink) byId('drawer').close();
});
byId('copy-link').addEventListener('click', async () => {
  await navigator.clipboard.writeText(location.href);
  byId('copy-link').textContent = 'Copied';
  setTimeout(() => (byId('copy-link').textContent = 'Copy its link'), 2000);
});
byId('forget').addEventListener('click', () => {
  storage.forget();
  view.conversations([], sessionId);
});
addEventListener('hashchange', open);
// A keyboard on the screen makes the view smaller, not always the page
visualViewport?.addEventListener('resize', () => {
  const { height = 0, scale = 1 } = visualViewport ?? {};
  document.body.style.setProperty('--height', `${height * scale}px`); // who zooms in sees less, of as much
});
setInterval(() => state.kind === 'waiting' && view.status(state, why), 250);
open();
