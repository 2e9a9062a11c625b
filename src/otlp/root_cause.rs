//! The cause at the end of an error's chain, which says what happened: the errors before it say
//! only what failed because of it.

use std::error::Error;

/// Returns the text of the innermost cause of an error, which may be the error itself.
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}
