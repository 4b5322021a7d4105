//! Errors that end the broker: every task runs until shutdown, so that one that ends before is a fault.

use std::io;

use tokio::task::JoinError;

/// Why the broker stopped before shutdown.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
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
pub(crate) type TaskResult = (&'static str, Result<(), BrokerError>);

/// Says which socket an error of the operating system is about.
pub(crate) fn socket<T>(what: &'static str, outcome: io::Result<T>) -> Result<T, BrokerError> {
    outcome.map_err(|cause| BrokerError::Socket { what, cause })
}

/// The error that `JoinSet::join_next` stands for when no task should have ended.
pub(crate) fn task_ended(ended: Option<Result<TaskResult, JoinError>>) -> BrokerError {
    let (task, cause) = match ended {
        Some(Ok((_, Err(error)))) => return error,
        Some(Ok((task, Ok(())))) => (task, "it returned".to_owned()),
        Some(Err(error)) => ("a task", error.to_string()),
        None => ("every task", "none was started".to_owned()),
    };
    BrokerError::TaskEnded { task, cause }
}
