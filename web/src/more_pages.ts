// What the page fetches after its beginning.

import './app/shortcut_list.js';
import './pages/module_page.js';
import './pages/modules_page.js';
import './pages/overview_page.js';
import './pages/run_page.js';
import './pages/start_page.js';
import './pages/together_page.js';
