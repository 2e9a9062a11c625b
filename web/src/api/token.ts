// The token of whoever is signed in. It is kept in the memory of the page, or in its session storage, which ends with
// the tab; never in a cookie or an address.

const KEY = 'ringfence.token';

/** Holds the token, and tells when it changes. */
export class TokenStore extends EventTarget {
  #token: string;
  readonly #isStored: boolean;

  /** Holds the token of the session, or where one is given, that one, of which the session does not know. */
  constructor(given?: string) {
    super();
    this.#isStored = given === undefined;
    this.#token = given ?? stored();
  }

  /** The token; empty where nobody is signed in. */
  get value(): string {
    return this.#token;
  }

  /** Takes a token, and keeps it for the session if asked. */
  set(token: string, keep: boolean): void {
    this.#token = token;
    if (this.#isStored) store(keep ? token : '');
    this.dispatchEvent(new Event('change'));
  }
}

function store(token: string): void {
  try {
    if (token !== '') sessionStorage.setItem(KEY, token);
    else sessionStorage.removeItem(KEY);
  } catch {
    // A browser that keeps nothing forgets it with the page.
  }
}

function stored(): string {
  try {
    return sessionStorage.getItem(KEY) ?? '';
  } catch {
    return '';
  }
}
