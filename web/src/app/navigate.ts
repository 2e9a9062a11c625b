// Moves between the places of the page.

import { formatRoute, type Route } from './route.js';

/** Goes to a place, which becomes an entry of the browser's history. */
export function navigate(route: Route): void {
  location.hash = formatRoute(route);
}

/** Changes the address of the place that is shown, such as when a filter is typed, without an entry for each letter. */
export function replaceRoute(route: Route): void {
  const hash = formatRoute(route);
  if (hash === location.hash) return;
  history.replaceState(history.state, '', hash);
  window.dispatchEvent(new HashChangeEvent('hashchange'));
}
