// Choices of the reader, which this browser remembers.

export const THEMES = ['system', 'light', 'dark'] as const;

/** What is remembered, with what holds until something is chosen. */
const DEFAULTS = {
  theme: 'system' as (typeof THEMES)[number],
  timestamps: false,
  wrap: true,
  lineNumbers: true,
};

export type Settings = typeof DEFAULTS;

const KEY = 'ringfence.settings';

/** The choices, and tells when one changes, in this tab or another. */
export class SettingsStore extends EventTarget {
  #values: Settings = { ...DEFAULTS, ...read() };

  constructor() {
    super();
    window.addEventListener('storage', (event) => {
      if (event.key !== KEY) return;
      this.#values = { ...DEFAULTS, ...read() };
      this.dispatchEvent(new Event('change'));
    });
  }

  get<K extends keyof Settings>(name: K): Settings[K] {
    return this.#values[name];
  }

  set<K extends keyof Settings>(name: K, value: Settings[K]): void {
    this.#values = { ...this.#values, [name]: value };
    try {
      localStorage.setItem(KEY, JSON.stringify(this.#values));
    } catch {
      // A browser that keeps nothing forgets it with the page.
    }
    this.dispatchEvent(new Event('change'));
  }
}

/** Reads what was remembered; what is not one of the choices is left out. */
function read(): Partial<Settings> {
  try {
    const stored: unknown = JSON.parse(localStorage.getItem(KEY) ?? '{}');
    if (typeof stored !== 'object' || stored === null) return {};
    const entries = Object.entries(stored).filter(([name, value]) => {
      if (name === 'theme') return THEMES.some((it) => it === value);
      return Object.hasOwn(DEFAULTS, name) && typeof value === 'boolean';
    });
    return Object.fromEntries(entries) as Partial<Settings>;
  } catch {
    return {};
  }
}
