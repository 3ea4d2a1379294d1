//! What is told to iproute2.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::error::HostsError;
use crate::namespaces::Namespaces;

/// Has `ip` do something in the network of some namespaces: one command a line, the word `ip` left out.
///
/// # Errors
/// [`HostsError::NoIp`], and [`HostsError::Ip`] where it does not do all of it.
pub(crate) fn ip(within: &Arc<Namespaces>, commands: &str) -> Result<(), HostsError> {
    let namespaces = Arc::clone(within);
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: the closure makes system calls, as a child of a process with threads may.
    unsafe { command.pre_exec(move || namespaces.enter()) };
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => HostsError::NoIp,
        _ => HostsError::system("start `ip`")(error),
    })?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // What it did not read it explains.
    let _ = stdin.write_all(commands.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(HostsError::system("wait for `ip`"))?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(HostsError::Ip { commands: commands.to_owned(), reason })
}
