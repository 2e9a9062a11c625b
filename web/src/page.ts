// The page: everything that the daemon shows in a browser.

import './app/shell.js';
import './app/shortcut_list.js';
import './app/sign_in.js';
import './ringfence-log.js';
import './pages/module_page.js';
import './pages/modules_page.js';
import './pages/overview_page.js';
import './pages/run_page.js';
import './pages/runs_page.js';
import './pages/start_page.js';
import './pages/together_page.js';
import './ui/toast.js';
