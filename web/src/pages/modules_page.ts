import { html, LitElement } from 'lit';
import { customElement, property } from 'lit/decorators.js';

import type { PageContext } from '../app/context.js';
import type { Route } from '../app/route.js';
import { controls } from '../ui/styles.js';

@customElement('rf-modules-page')
export class ModulesPage extends LitElement {
  static override styles = controls;

  @property({ attribute: false }) context!: PageContext;
  @property({ attribute: false }) route!: Extract<Route, { page: 'modules' }>;

  override render() {
    return html`<p>modules</p>`;
  }
}
