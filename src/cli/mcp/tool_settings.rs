//! What the operator of the command decides for the agent.

use std::collections::HashMap;
use std::time::Duration;

use super::module_folder::ModuleFolder;

/// The settings of the tools, by the flags of the command.
pub(super) struct ToolSettings {
    /// The labels of all runs that the agent starts.
    pub(super) labels: HashMap<String, String>,
    /// The most wall time of a run, and the time of a run for which the agent asks none.
    pub(super) timeout: Option<Duration>,
    /// The most bytes of output in one answer.
    pub(super) max_output: usize,
    /// The files that the agent may run; `None` for none.
    pub(super) modules: Option<ModuleFolder>,
}
