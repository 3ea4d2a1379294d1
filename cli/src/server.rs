//! The server that is asked, by an instance that takes no memory of it and leaves no trace.

use std::collections::HashMap;
use std::io;

use maru_client::{Config, MaruHandler, ReportedLatencies, ServerRecord, UsageRecord};

use crate::cli::ServerArgs;
use crate::error::{CliError, explained};

/// A handler for looking.
///
/// # Errors
/// [`CliError`] where there is no server, or it refuses.
pub(crate) fn connect(args: &ServerArgs) -> Result<MaruHandler, CliError> {
    let mut config = Config::new()
        .instance_id(format!("maru-cli-{}", std::process::id()))
        .no_grace(true)
        .timeout(args.timeout);
    if let Some(address) = &args.socket {
        config = config.address(address.clone());
    }
    if let Some(path) = &args.auth_token_file {
        let failed = |source: io::Error| CliError::Token { path: path.clone(), source };
        let text = std::fs::read_to_string(path).map_err(failed)?;
        config = config.auth_token(text.lines().next().unwrap_or_default());
    }
    if let Some(path) = &args.tls_ca {
        config = config.tls_ca(path);
    }
    if let Some((certificate, key)) = args.tls_cert.as_ref().zip(args.tls_key.as_ref()) {
        config = config.tls_identity(certificate, key);
    }
    Ok(MaruHandler::connect(config)?)
}

/// What the server is; `None` where it is too old to say.
///
/// # Errors
/// Those of any request.
pub(crate) fn identity(maru: &MaruHandler) -> Result<Option<ServerRecord>, CliError> {
    unless_old(maru.server().map_err(explained))
}

/// How long calls take of the instances that report it; nothing of a server that is too old to tell.
///
/// # Errors
/// Those of any request.
pub(crate) fn reports(maru: &MaruHandler) -> Result<Option<ReportedLatencies>, CliError> {
    unless_old(maru.reports().map_err(explained))
}

fn unless_old<T>(told: Result<T, CliError>) -> Result<Option<T>, CliError> {
    match told {
        Ok(told) => Ok(Some(told)),
        Err(CliError::OldServer(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The instances, without the one that asks; and the connections of that one.
///
/// # Errors
/// Those of any request.
pub(crate) fn instances(maru: &MaruHandler) -> Result<(Vec<UsageRecord>, u64), CliError> {
    let own = maru.instance_number();
    let (own, others): (Vec<_>, Vec<_>) =
        maru.usage()?.into_iter().partition(|usage| usage.instance.get() == own);
    Ok((others, own.iter().map(|usage| u64::from(usage.connections.get())).sum()))
}

/// The names of instances, by number.
pub(crate) fn names(instances: &[UsageRecord]) -> HashMap<u32, String> {
    instances.iter().map(|usage| (usage.instance.get(), name(usage))).collect()
}

/// The name of an instance; the server has checked it, and a name that it has not is none.
pub(crate) fn name(usage: &UsageRecord) -> String {
    usage.instance_id.text().unwrap_or("?").to_owned()
}
