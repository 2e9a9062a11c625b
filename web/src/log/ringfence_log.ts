import { html, LitElement } from 'lit';
import { customElement } from 'lit/decorators.js';

@customElement('ringfence-log')
export class RingfenceLog extends LitElement {
  override render() {
    return html`log`;
  }
}
