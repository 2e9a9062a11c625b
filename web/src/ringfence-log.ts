// The custom element `<ringfence-log>`, for this page and for the pages of others.

import './log/ringfence_log.js';
