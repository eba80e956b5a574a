// @ts-check
/**
 * Markdown, as far as answers use it, made into nodes: by createElement and text alone, so whatever is no Markdown
 * that is known here stays text. HTML is text, pictures are links, and links lead to http, https and mailto only.
 *
 * Every search is bounded, or not repeated where it failed: text that is meant to be slow is not.
 */

const DEPTH_MAX = 8;
const LABEL_CHARS_MAX = 500;
const COLUMNS_MAX = 50;
const SCHEMES = ['http:', 'https:', 'mailto:'];

const FENCE = /^ {0,3}(`{3,}|~{3,})[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|(\d{1,9})[.)])(?:[ \t]+|$)/;
const TABLE_RULE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/**
 * @typedef {{lines: string[], make: (depth: number) => Node}} Block
 */

/**
 * Show `text` in `parent`, where an earlier state of it may be shown: only what has changed is made anew.
 * @param {Element} parent
 * @param {string} text
 */
export function show(parent, text) {
  const known = shown.get(parent) ?? [];
  const blocks = blocksOf(text.split(/\r\n?|\n/));
  const sources = blocks.map((each) => each.lines.join('\n'));
  let same = 0;
  while (same < known.length && known[same] === sources[same]) same++;
  while (parent.childNodes.length > same) parent.lastChild?.remove();
  parent.append(...blocks.slice(same).map((each) => each.make(0)));
  shown.set(parent, sources);
}

/** The text of each block that an element shows. @type {WeakMap<Element, string[]>} */
const shown = new WeakMap();

/** @returns {HTMLElement} */
function element(/** @type {string} */ name, /** @type {(Node | string)[]} */ ...content) {
  const made = document.createElement(name);
  made.append(...content);
  return made;
}

/** @returns {Block[]} */
function blocksOf(/** @type {string[]} */ lines) {
  /** @type {Block[]} */
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) at++;
    else {
      const [length, make] = blockAt(lines, at);
      blocks.push({ lines: lines.slice(at, at + length), make });
      at += length;
    }
  }
  return blocks;
}

/** How many lines the block has that begins at a line, and what makes it. @returns {[number, Block['make']]} */
function blockAt(/** @type {string[]} */ lines, /** @type {number} */ at) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence[1]);
  const heading = HEADING.exec(line);
  if (heading) {
    const level = Math.min(heading[1].length + 2, 6); // the page has the two above
    return [1, () => element(`h${level}`, ...inline(line.slice(heading[0].length).replace(/[ \t]#+[ \t]*$/, '')))];
  }
  if (RULE.test(line)) return [1, () => element('hr')];
  if (QUOTE.test(line)) {
    const length = count(lines, at, (each) => QUOTE.test(each));
    const inner = lines.slice(at, at + length).map((each) => each.replace(QUOTE, ''));
    return [length, (depth) => element('blockquote', ...nested(inner, depth))];
  }
  if (ITEM.test(line)) return list(lines, at);
  if (line.includes('|') && TABLE_RULE.test(lines[at + 1] ?? '') && (lines[at + 1] ?? '').includes('-')) {
    return table(lines, at);
  }
  const length = 1 + count(lines, at + 1, (each) => !!each.trim() && !interrupts(each));
  return [length, () => paragraph(lines.slice(at, at + length))];
}

function interrupts(/** @type {string} */ line) {
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((each) => each.test(line));
}

/** How many lines from `at` on are as they should be. */
function count(/** @type {string[]} */ lines, /** @type {number} */ at, /** @type {(line: string) => boolean} */ holds) {
  let end = at;
  while (end < lines.length && holds(lines[end])) end++;
  return end - at;
}

/** @returns {Node[]} */
function nested(/** @type {string[]} */ lines, /** @type {number} */ depth) {
  if (depth >= DEPTH_MAX) return [lines.join('\n')].map((text) => document.createTextNode(text));
  return blocksOf(lines).map((each) => each.make(depth + 1));
}

function paragraph(/** @type {string[]} */ lines) {
  const made = element('p');
  lines.forEach((line, index) => {
    if (index) made.append(/ {2}$|\\$/.test(lines[index - 1]) ? element('br') : '\n');
    made.append(...inline(line.trim().replace(/\\$/, index < lines.length - 1 ? '' : '\\')));
  });
  return made;
}

/** @returns {[number, Block['make']]} */
function code(/** @type {string[]} */ lines, /** @type {number} */ at, /** @type {string} */ fence) {
  const isEnd = (/** @type {string} */ line) => line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0], '');
  const length = count(lines, at + 1, (each) => !isEnd(each));
  const text = lines.slice(at + 1, at + 1 + length).join('\n');
  const make = () => {
    const pre = element('pre', element('code', text));
    pre.tabIndex = 0; // or a keyboard could not scroll it
    return pre;
  };
  return [Math.min(length + 2, lines.length - at), make];
}

/** @returns {[number, Block['make']]} */
function list(/** @type {string[]} */ lines, /** @type {number} */ at) {
  const first = /** @type {RegExpExecArray} */ (ITEM.exec(lines[at]));
  /** @type {string[][]} */
  const items = [];
  let end = at;
  let indent = 0;
  for (; end < lines.length; end++) {
    const line = lines[end];
    const item = ITEM.exec(line);
    if (item && (!items.length || item[1].length < indent) && !RULE.test(line)) {
      if (!item[3] !== !first[3]) break; // the other kind of list
      indent = item[0].length;
      items.push([line.slice(indent)]);
    } else if (!line.trim()) {
      const next = lines[end + 1] ?? '';
      if (!/^ {2,}\S/.test(next) && !ITEM.test(next)) break;
      items[items.length - 1].push('');
    } else if (/^( {2,}|\t)/.test(line)) {
      items[items.length - 1].push(line.replace(new RegExp(`^( {1,${Math.max(indent, 2)}}|\t)`), ''));
    } else if (interrupts(line) || !lines[end - 1].trim()) break;
    else items[items.length - 1].push(line);
  }
  const make = (/** @type {number} */ depth) => {
    const made = element(first[3] ? 'ol' : 'ul', ...items.map((each) => element('li', ...tight(nested(each, depth)))));
    if (first[3]) /** @type {HTMLOListElement} */ (made).start = Number(first[3]);
    return made;
  };
  return [end - at, make];
}

/** A lone paragraph of an item is its text. @returns {Node[]} */
function tight(/** @type {Node[]} */ nodes) {
  const [first, ...rest] = nodes;
  return first?.nodeName === 'P' && !rest.some((each) => each.nodeName === 'P') ? [...first.childNodes, ...rest] : nodes;
}

/** @returns {[number, Block['make']]} */
function table(/** @type {string[]} */ lines, /** @type {number} */ at) {
  const length = 2 + count(lines, at + 2, (each) => each.includes('|') && !!each.trim());
  const make = () => {
    const row = (/** @type {string} */ line, /** @type {string} */ name) =>
      element('tr', ...cells(line).map((each) => element(name, ...inline(each))));
    const body = lines.slice(at + 2, at + length).map((each) => row(each, 'td'));
    const made = element('div', element('table', element('thead', row(lines[at], 'th')), element('tbody', ...body)));
    made.className = 'table';
    made.tabIndex = 0;
    return made;
  };
  return [length, make];
}

function cells(/** @type {string} */ line) {
  const inner = line.trim().replace(/^\|/, '').replace(/\|$/, '');
  return inner.split(/(?<!\\)\|/, COLUMNS_MAX).map((each) => each.trim().replaceAll('\\|', '|'));
}

// What is within a line

const SPECIAL = /[\\`*_~[<!]|https?:\/\//g;
const CLOSED_BY = { '**': 'strong', __: 'strong', '*': 'em', _: 'em', '~~': 'del' };
const WORD = /[\p{L}\p{N}]/u;

/** @returns {(Node | string)[]} */
function inline(/** @type {string} */ text, depth = 0) {
  if (depth > DEPTH_MAX) return [text];
  /** @type {(Node | string)[]} */
  const made = [];
  const missing = new Set(); // what is not found behind here: it is not looked for again
  let from = 0;
  SPECIAL.lastIndex = 0;
  for (let match; (match = SPECIAL.exec(text));) {
    const found = spanAt(text, match.index, depth, missing);
    if (found) {
      made.push(text.slice(from, match.index), found.node);
      from = found.end;
      SPECIAL.lastIndex = from;
    } else SPECIAL.lastIndex = match.index + skipped(text, match.index);
  }
  made.push(text.slice(from));
  return made.filter((each) => each !== '');
}

/** How many characters at a place are no span, so that none begins among them. */
function skipped(/** @type {string} */ text, /** @type {number} */ at) {
  return '`*_~'.includes(text[at]) ? count([...text.slice(at, at + 50)], 0, (each) => each === text[at]) : 1;
}

/** @typedef {{node: Node | string, end: number}} Span */

/** @returns {Span | null} */
function spanAt(
  /** @type {string} */ text, /** @type {number} */ at, /** @type {number} */ depth, /** @type {Set<string>} */ missing,
) {
  switch (text[at]) {
    case '\\': return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? '') ? { node: text[at + 1], end: at + 2 } : null;
    case '`': return codeAt(text, at, missing);
    case '[': return linkAt(text, at, depth);
    case '!': return text[at + 1] === '[' ? linkAt(text, at + 1, depth) : null;
    case '<': return autolinkAt(text, at);
    case 'h': return bareLinkAt(text, at);
    default: return emphasisAt(text, at, depth, missing);
  }
}

/** @returns {Span | null} */
function codeAt(/** @type {string} */ text, /** @type {number} */ at, /** @type {Set<string>} */ missing) {
  const [ticks] = /** @type {RegExpExecArray} */ (/^`{1,50}/.exec(text.slice(at, at + 50)));
  if (missing.has(ticks)) return null;
  let end = text.indexOf(ticks, at + ticks.length);
  while (end >= 0 && text[end + ticks.length] === '`') { // a longer row is another one
    let next = end;
    while (text[next] === '`') next++;
    end = text.indexOf(ticks, next);
  }
  if (end < 0) {
    missing.add(ticks);
    return null;
  }
  const inner = text.slice(at + ticks.length, end);
  const isPadded = inner.startsWith(' ') && inner.endsWith(' ') && inner.trim();
  return { node: element('code', isPadded ? inner.slice(1, -1) : inner), end: end + ticks.length };
}

/** @returns {Span | null} */
function emphasisAt(
  /** @type {string} */ text, /** @type {number} */ at, /** @type {number} */ depth, /** @type {Set<string>} */ missing,
) {
  const sign = text[at];
  const mark = text[at + 1] === sign ? sign + sign : sign;
  if (!(mark in CLOSED_BY) || missing.has(mark)) return null;
  const begin = at + mark.length;
  const isInWord = sign === '_' && WORD.test(text[at - 1] ?? '');
  if (isInWord || !text[begin] || /\s/.test(text[begin])) return null;
  for (let end = text.indexOf(mark, begin + 1); end >= 0; end = text.indexOf(mark, end + 1)) {
    const after = text[end + mark.length] ?? '';
    const isLonger = after === sign || (mark.length === 1 && text[end - 1] === sign);
    if (isLonger || /[\s\\]/.test(text[end - 1]) || (sign === '_' && WORD.test(after))) continue;
    const name = CLOSED_BY[/** @type {keyof typeof CLOSED_BY} */ (mark)];
    return { node: element(name, ...inline(text.slice(begin, end), depth + 1)), end: end + mark.length };
  }
  missing.add(mark);
  return null;
}

/** @returns {Span | null} */
function linkAt(/** @type {string} */ text, /** @type {number} */ at, /** @type {number} */ depth) {
  const part = text.slice(at, at + LABEL_CHARS_MAX);
  let open = 0;
  let end = 0;
  do {
    if (part[end] === '\\') end++;
    else if (part[end] === '[') open++;
    else if (part[end] === ']') open--;
  } while (open && ++end < part.length);
  if (open || part[end + 1] !== '(') return null;
  const target = /^\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+["'(][^"')]{0,300}["')])?\s*\)/.exec(
    text.slice(at + end + 1, at + end + 1 + 2500),
  );
  const url = target && safe(target[1]);
  if (!url) return null;
  const label = inline(part.slice(1, end), depth + 1);
  return { node: link(url, label.length ? label : [target[1]]), end: at + end + 1 + target[0].length };
}

/** @returns {Span | null} */
function autolinkAt(/** @type {string} */ text, /** @type {number} */ at) {
  const match = /^<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/i.exec(text.slice(at, at + 2050));
  const url = match && safe(match[1]);
  return url ? { node: link(url, [match[1]]), end: at + match[0].length } : null;
}

/** @returns {Span | null} */
function bareLinkAt(/** @type {string} */ text, /** @type {number} */ at) {
  const match = /^https?:\/\/[^\s<>"'`|\\]{1,2000}/.exec(text.slice(at, at + 2050));
  let shown = match ? match[0].replace(/[.,:;!?*_~]+$/, '') : '';
  if (shown.endsWith(')') && !shown.includes('(')) shown = shown.slice(0, -1);
  const url = safe(shown);
  return url ? { node: link(url, [shown]), end: at + shown.length } : null;
}

/** The address, where it is whole and leads to the web or to mail. */
function safe(/** @type {string} */ address) {
  if (!URL.canParse(address)) return null;
  const url = new URL(address);
  return SCHEMES.includes(url.protocol) ? url.href : null;
}

function link(/** @type {string} */ url, /** @type {(Node | string)[]} */ label) {
  const made = /** @type {HTMLAnchorElement} */ (element('a', ...label));
  for (const inner of made.querySelectorAll('a')) inner.replaceWith(...inner.childNodes);
  made.href = url;
  made.rel = 'noopener noreferrer';
  made.target = '_blank';
  return made;
}
