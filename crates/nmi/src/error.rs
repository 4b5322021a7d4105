//! Errors that end the node agent: every task runs until shutdown, so that one that ends before is a fault.

use std::io;

use tokio::task::JoinError;

/// Why the node agent stopped before shutdown.
#[derive(Debug, thiserror::Error)]
pub enum NmiError {
    /// A socket failed.
    #[error("{what}: {cause}; the process must be restarted")]
    Socket {
        /// Which socket.
        what: &'static str,
        /// The operating system's error.
        cause: io::Error,
    },
    /// A task returned or panicked.
    #[error(
        "the task {task} ended by itself: {cause}; this is a fault of podid, the process must be restarted"
    )]
    TaskEnded {
        /// Which task.
        task: &'static str,
        /// How it ended.
        cause: String,
    },
}

/// The name of a task, and how it ended.
pub(crate) type TaskResult = (&'static str, Result<(), NmiError>);

/// Says which socket an error of the operating system is about.
pub(crate) fn socket<T>(what: &'static str, outcome: io::Result<T>) -> Result<T, NmiError> {
    outcome.map_err(|cause| NmiError::Socket { what, cause })
}

/// The error that `JoinSet::join_next` stands for when no task should have ended.
pub(crate) fn task_ended(ended: Option<Result<TaskResult, JoinError>>) -> NmiError {
    match ended {
        Some(Ok((_, Err(error)))) => error,
        Some(Ok((task, Ok(())))) => NmiError::TaskEnded {
            task,
            cause: "it returned".to_owned(),
        },
        Some(Err(error)) => NmiError::TaskEnded {
            task: "a task",
            cause: error.to_string(),
        },
        None => NmiError::TaskEnded {
            task: "every task",
            cause: "none was started".to_owned(),
        },
    }
}
