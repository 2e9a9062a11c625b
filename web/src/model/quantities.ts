// Durations, sizes and counts as people type them.

const DURATION_UNITS: Readonly<Record<string, number>> = { ms: 1, s: 1_000, m: 60_000, min: 60_000, h: 3_600_000 };
const SIZE_UNITS: Readonly<Record<string, number>> = { '': 0, b: 0, k: 1, kib: 1, m: 2, mib: 2, g: 3, gib: 3 };
const COUNT_UNITS: Readonly<Record<string, bigint>> = {
  '': 1n,
  k: 1_000n,
  m: 1_000_000n,
  g: 1_000_000_000n,
  t: 1_000_000_000_000n,
};

/** Reads a duration such as `500ms`, `30s`, `2m` or `1m 30s` as milliseconds. A number without a unit is none. */
export function parseDuration(text: string): number | undefined {
  const parts = [
    ...text
      .trim()
      .toLowerCase()
      .matchAll(/\s*(\d+(?:\.\d+)?)\s*(ms|s|min|m|h)(?![a-z])/gy),
  ];
  if (parts.length === 0 || parts.map(([part]) => part).join('').length !== text.trim().length) return undefined;
  const sum = parts.reduce((ms, [, digits, unit]) => ms + Number(digits) * (DURATION_UNITS[unit ?? ''] ?? 0), 0);
  return Math.round(sum);
}

/** Writes milliseconds so that [`parseDuration`] reads the same. */
export function writeDuration(ms: number): string {
  if (ms % 60_000 === 0) return `${ms / 60_000}m`;
  return ms % 1_000 === 0 ? `${ms / 1_000}s` : `${ms}ms`;
}

/** Reads a size such as `65536`, `64KiB` or `1.5 MiB` as bytes. */
export function parseSize(text: string): bigint | undefined {
  const [, digits, unit] = /^(\d+(?:\.\d+)?)\s*([kmg]?(?:ib)?|b)$/i.exec(text.trim()) ?? [];
  const power = SIZE_UNITS[(unit ?? '-').toLowerCase()];
  if (digits === undefined || power === undefined) return undefined;
  if (!digits.includes('.')) return BigInt(digits) * 1024n ** BigInt(power);
  const bytes = Number(digits) * 1024 ** power;
  return Number.isSafeInteger(bytes) ? BigInt(bytes) : undefined;
}

/** Writes bytes so that [`parseSize`] reads the same. */
export function writeSize(bytes: bigint): string {
  for (const [unit, size] of [
    ['GiB', 1n << 30n],
    ['MiB', 1n << 20n],
    ['KiB', 1n << 10n],
  ] as const) {
    if (bytes >= size && bytes % size === 0n) return `${bytes / size}${unit}`;
  }
  return `${bytes}`;
}

/** Reads a whole number such as `1000000`, `1,000,000`, `1_000_000` or `1M`. */
export function parseCount(text: string): bigint | undefined {
  const [, digits, unit] = /^(\d[\d_,]*)\s*([kmgt]?)$/i.exec(text.trim()) ?? [];
  if (digits === undefined) return undefined;
  return BigInt(digits.replace(/[_,]/g, '')) * (COUNT_UNITS[(unit ?? '').toLowerCase()] ?? 1n);
}
