// What the window is called. Only the page's own words stand in it, and ids that look like one.

import { shortRunId } from '../model/format.js';
import type { Route } from './route.js';

/** Returns the title of a place. */
export function titleOf(route: Route): string {
  const name = nameOf(route);
  return name === '' ? 'Ringfence' : `${name} · Ringfence`;
}

/** Returns the name of a place, empty for one that there is not. */
export function nameOf(route: Route): string {
  switch (route.page) {
    case 'runs':
      return 'Runs';
    case 'run':
      // The id stands in the address, which anybody may have made up.
      return /^[0-9a-f]{32}\./.test(route.id) ? `Run ${shortRunId(route.id)}` : 'Run';
    case 'together':
      return 'Runs together';
    case 'modules':
      return 'Modules';
    case 'module':
      return 'Module';
    case 'start':
      return 'Start a run';
    case 'overview':
      return 'Overview';
    case 'unknown':
      return '';
  }
}
