// `<ringfence-log server run>`: the output of a run as it comes, in this page and in the pages of others.

import { html, LitElement } from 'lit';
import { customElement, property } from 'lit/decorators.js';

import type { Daemon } from '../api/client.js';
import type { LogPosition } from '../app/route.js';
import type { SettingsStore } from '../app/settings.js';

/**
 * The output of a run.
 *
 * @fires ringfence-run-event - The run started or ended, or output was missed (`RunEventDetail` of events.ts).
 * @fires ringfence-state - The connection is another than before (`LogStateDetail`).
 * @fires ringfence-link - The reader asked for the address of a line (`LogLinkDetail`).
 */
@customElement('ringfence-log')
export class RingfenceLog extends LitElement {
  /** The address of the daemon's admin listener, where no `daemon` is given. */
  @property() server = '';
  /** The id of the run. */
  @property() run = '';
  /** The bearer token for `server`, where it asks for one. */
  @property({ attribute: false }) token = '';
  /** The daemon of this page, whose streams are shared with the page. Keys of the page work only with it. */
  @property({ attribute: false }) daemon: Daemon | undefined;
  /** Where the reader's choices are remembered. */
  @property({ attribute: false }) settings: SettingsStore | undefined;
  /** The line to show and to mark. */
  @property({ attribute: false }) at: LogPosition | undefined;

  override render() {
    return html`log`;
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'ringfence-log': RingfenceLog;
  }
}
