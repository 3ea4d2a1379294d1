//! `maru calls`: how long the calls of instances take that report it, as their callers see it.

use maru_client::{ClientOperation, MaruHandler};

use crate::error::{CliError, explained};
use crate::report::{Report, Row, Value};
use crate::server::{instances, names};

/// A row for each instance and operation that it was called for.
///
/// # Errors
/// Those of any request.
pub(crate) fn look(maru: &MaruHandler) -> Result<Report, CliError> {
    let reports = maru.reports().map_err(explained)?;
    let names = names(&instances(maru)?.0);
    let rows = reports.instances().into_iter().flat_map(|instance| {
        let name = names.get(&instance).map_or("?", String::as_str);
        let rows =
            ClientOperation::ALL.iter().map(|operation| (*operation, reports.of(instance, *operation)));
        let called = rows.filter(|(_, calls)| calls.count() > 0).collect::<Vec<_>>();
        called.into_iter().map(move |(operation, calls)| {
            Row(vec![
                ("instance", Value::Count(instance.into())),
                ("name", Value::Text(name.to_owned())),
                ("operation", Value::Text(operation.name().to_owned())),
                ("calls", Value::Count(calls.count())),
                ("p50_ns", Value::percentile(&calls, 50.0)),
                ("p99_ns", Value::percentile(&calls, 99.0)),
                ("p999_ns", Value::percentile(&calls, 99.9)),
            ])
        })
    });
    Ok(Report::List("calls", rows.collect()))
}
