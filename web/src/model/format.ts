// Figures, times and names as they are shown everywhere in the page.

const BYTE_UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];
const SECOND = 1_000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

/** Shows a number of bytes in binary units with three digits, such as `1.46 MiB`. */
export function formatBytes(bytes: number | bigint): string {
  let value = Number(bytes);
  let unit = 0;
  // What would be rounded to 1,024 of a unit is one of the next.
  while (value >= (unit === 0 ? 1024 : 1023.5) && unit < BYTE_UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? formatCount(Math.round(value)) : threeDigits(value)} ${BYTE_UNITS[unit]}`;
}

/** Shows a whole number with commas, such as `12,345`. */
export function formatCount(count: number | bigint): string {
  return String(count).replace(/\B(?=(\d{3})+(?!\d))/g, ',');
}

/** Shows a large number with three digits and a word, such as `1.23 million`, where the exact one says no more. */
export function formatRoughCount(count: number | bigint): string {
  const value = Number(count);
  for (const [size, word] of [
    [1e12, 'trillion'],
    [1e9, 'billion'],
    [1e6, 'million'],
  ] as const) {
    if (value >= size) return `${threeDigits(Math.floor((value / size) * 100) / 100)} ${word}`;
  }
  return formatCount(count);
}

/** Shows a number of things, such as `1 run` or `12 runs`. */
export function plural(count: number | bigint, one: string, many = `${one}s`): string {
  return `${formatCount(count)} ${Number(count) === 1 ? one : many}`;
}

/** Shows a duration by its two largest units, such as `12.3 s` or `2 min 05 s`. */
export function formatDuration(milliseconds: number): string {
  const ms = Math.max(0, milliseconds);
  if (ms < SECOND - 0.5) return `${ms === 0 || ms >= 100 ? Math.round(ms) : trim(ms.toPrecision(2))} ms`;
  // Digits are cut off, so that nothing is rounded to a minute.
  if (ms < 10 * SECOND) return `${Math.floor(Math.max(ms, SECOND) / 10) / 100} s`;
  if (ms < MINUTE) return `${Math.floor(ms / 100) / 10} s`;
  const [large, small, size, part] =
    ms < HOUR ? ['min', 's', MINUTE, SECOND] : ms < DAY ? ['h', 'min', HOUR, MINUTE] : (['d', 'h', DAY, HOUR] as const);
  const rest = Math.floor((ms % Number(size)) / Number(part));
  return `${formatCount(Math.floor(ms / Number(size)))} ${large} ${String(rest).padStart(2, '0')} ${small}`;
}

/** Says how long ago a time was, such as `3 min ago`. Times are milliseconds of `Date.now()`. */
export function formatRelative(time: number, now: number): string {
  const distance = Math.abs(now - time);
  if (distance < SECOND) return 'just now';
  const [size, unit] =
    distance < MINUTE ? [SECOND, 's'] : distance < HOUR ? [MINUTE, 'min'] : distance < DAY ? [HOUR, 'h'] : [DAY, 'd'];
  const amount = `${formatCount(Math.floor(distance / Number(size)))} ${unit}`;
  return time > now ? `in ${amount}` : `${amount} ago`;
}

/** Shows a time as `2026-11-29 15:31:28.123 +01:00`, in the time zone of the browser. */
export function formatAbsolute(time: number): string {
  const date = new Date(time);
  if (Number.isNaN(date.getTime())) return 'at an unknown time';
  const two = (value: number) => String(value).padStart(2, '0');
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const clock = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  const offset = -date.getTimezoneOffset();
  const zone = `${offset < 0 ? '-' : '+'}${two(Math.floor(Math.abs(offset) / 60))}:${two(Math.abs(offset) % 60)}`;
  return `${day} ${clock}.${String(date.getMilliseconds()).padStart(3, '0')} ${zone}`;
}

/** Shows the first twelve digits of a module's digest, without what kind of digest it is. */
export function shortDigest(digest: string): string {
  const digits = digest.replace(/^sha256:/, '');
  return digits.length > 12 ? `${digits.slice(0, 12)}…` : digits;
}

/** Shows the digits of a run's id by which it is told from others: ids begin with their time, and end with chance. */
export function shortRunId(id: string): string {
  const [, digits] = /^([0-9a-f]{32})\./.exec(id) ?? [];
  if (digits !== undefined) return `…${digits.slice(-8)}`;
  return id.length > 13 ? `${id.slice(0, 12)}…` : id;
}

/** Returns the name of the daemon that a run's id ends with; empty where it is no such id. */
export function instanceOf(id: string): string {
  const at = id.indexOf('.');
  return at < 0 ? '' : id.slice(at + 1);
}

function threeDigits(value: number): string {
  return trim(value >= 100 ? value.toFixed(0) : value.toPrecision(3));
}

function trim(digits: string): string {
  return digits.includes('.') ? digits.replace(/\.?0+$/, '') : digits;
}
