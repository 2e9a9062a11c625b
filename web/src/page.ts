// The page: everything that the daemon shows in a browser. The table of runs is there at once; the rest is fetched while
// that is being filled (`more_pages`).

import './app/shell.js';
import './app/sign_in.js';
import './pages/runs_page.js';
import './ui/toast.js';
