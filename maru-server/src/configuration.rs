//! Where options come from: the command line, the environment, a file.
//!
//! Nothing here knows any option: what the command line of [`Options`] takes can be set in all three ways. What the command
//! line does not say is put in front of it as the environment or the file says it, and all of it is parsed as one.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::ServerError;
use crate::options::Options;

/// What `--help` says below the options.
pub(crate) const HELP: &str = "\
Every option but --check-config may also be set in the environment, as MARU_SERVER_POOL_SIZE=64GiB, and in the file of \
--config, as pool-size = \"64GiB\". The command line comes before the environment, the environment before the file, the file \
before the default.";

/// What the name of a variable that sets an option begins with.
const PREFIX: &str = "MARU_SERVER_";

/// What is wrong with another value of a flag.
const ON_OR_OFF: &str = "is on or off; write true or false";

/// Options that say what to do, not how to serve.
const NOT_SHOWN: [&str; 2] = ["config", "check_config"];

/// The options, and where each comes from.
#[derive(Debug)]
pub struct Configuration {
    /// The options.
    pub options: Options,
    /// Variables that look as if they set an option and set none. They may be meant for something else: Kubernetes makes
    /// such names of services.
    pub unknown_variables: Vec<String>,
    matches: ArgMatches,
    sources: BTreeMap<String, Source>,
}

/// Where the value of an option comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// A variable.
    Environment(String),
    /// A line of a file.
    File(PathBuf, usize),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Environment(variable) => write!(f, "{variable} of the environment"),
            Source::File(path, line) => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// The options can't be made sense of. Each text says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The command line can't be parsed, or asks for help.
    #[error("{0}")]
    CommandLine(#[from] clap::Error),
    /// The file can't be read.
    #[error("can't read the options in {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("{}:{line}: {message}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A key that names no option.
    #[error("{}:{line}: there is no option {key}{hint}; --help lists them", .path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// The key.
        key: String,
        /// What may be meant.
        hint: String,
    },
    /// A value that its option does not take.
    #[error("{place}: {option} {reason}")]
    Value {
        /// Where it stands.
        place: String,
        /// The option.
        option: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The value of an option outside of the command line.
struct Setting {
    source: Source,
    /// The values; of a flag none where it is off.
    values: Vec<OsString>,
}

impl Configuration {
    /// The options of this process.
    ///
    /// # Errors
    /// [`ConfigurationError`].
    pub fn load() -> Result<Configuration, ConfigurationError> {
        Configuration::of(std::env::args_os().collect(), std::env::vars_os())
    }

    /// The options by a command line, the first argument of which is the program, and an environment.
    ///
    /// # Errors
    /// [`ConfigurationError`].
    pub fn of(
        command_line: Vec<OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Configuration, ConfigurationError> {
        let mut command = Options::command();
        command.build();
        let (by_environment, unknown_variables) = read_environment(&command, environment)?;

        // What it says, whether or not it is enough by itself.
        let said = command.clone().ignore_errors(true).try_get_matches_from(&command_line)?;
        let is_said = |id: &str| said.value_source(id) == Some(ValueSource::CommandLine);
        let file = match said.get_one::<PathBuf>("config") {
            Some(path) => Some(path.clone()),
            None => by_environment.get("config").and_then(|set| set.values.first()).map(PathBuf::from),
        };
        let mut settings = file.as_deref().map_or(Ok(BTreeMap::new()), |path| read_file(&command, path))?;
        settings.extend(by_environment);
        settings.retain(|id, _| !is_said(id));

        let mut arguments = command_line;
        let rest = arguments.split_off(arguments.len().min(1));
        let mut sources = BTreeMap::new();
        for (id, setting) in settings {
            let arg = arg_of(&command, &id);
            let given = as_arguments(arg, &setting.values);
            check(&command, arg, &given, &setting.source)?;
            arguments.extend(given);
            sources.insert(id, setting.source);
        }
        arguments.extend(rest);
        let matches = command
            .clone()
            .try_get_matches_from(arguments)
            .map_err(|error| ConfigurationError::CommandLine(with_sources(error, &command, &sources)))?;
        let options = Options::from_arg_matches(&matches)?;
        Ok(Configuration { options, unknown_variables, matches, sources })
    }

    /// What can be checked without serving, and without touching what a server that runs uses.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn check(&self) -> Result<(), ServerError> {
        crate::net::read_token(&self.options)?;
        crate::net::certificate_files(&self.options).map_or(Ok(()), |files| files.load().map(drop))
    }
}

/// Every option with where it comes from: a file of options that are these.
impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = Options::command();
        for arg in options_of(&command) {
            let (name, id) = (name_of(arg), arg.get_id().as_str());
            let source = match (self.sources.get(id), self.matches.value_source(id)) {
                (Some(source), _) => source.to_string(),
                (None, Some(ValueSource::CommandLine)) => "the command line".to_owned(),
                _ => "the default".to_owned(),
            };
            let values = if is_flag(arg) {
                vec![self.matches.get_flag(id).to_string()]
            } else {
                let values = self.matches.get_raw(id).into_iter().flatten();
                values.map(|value| toml_value(&value.to_string_lossy())).collect()
            };
            let setting = match values.as_slice() {
                [] => {
                    let (_, default) = help_and_default(arg);
                    writeln!(f, "# {name} is not set: {}", default.unwrap_or_default())?;
                    continue;
                }
                [value] if !is_list(arg) => format!("{name} = {value}"),
                values => format!("{name} = [{}]", values.join(", ")),
            };
            writeln!(f, "{setting:<40} # {source}")?;
        }
        Ok(())
    }
}

/// The options that can be set in all ways.
fn options_of(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        let id = arg.get_id().as_str();
        !NOT_SHOWN.contains(&id)
            && !matches!(
                arg.get_action(),
                ArgAction::Help | ArgAction::HelpLong | ArgAction::HelpShort | ArgAction::Version
            )
    })
}

fn arg_of<'a>(command: &'a Command, id: &str) -> &'a Arg {
    command.get_arguments().find(|arg| arg.get_id() == id).expect("settings are of options that there are")
}

fn name_of(arg: &Arg) -> &str {
    arg.get_long().expect("every option has a long name")
}

fn is_flag(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

/// The variable that sets an option.
fn variable_of(arg: &Arg) -> String {
    format!("{PREFIX}{}", name_of(arg).replace('-', "_").to_uppercase())
}

/// The first paragraph of an option's text, and the default where it names one.
fn help_and_default(arg: &Arg) -> (String, Option<String>) {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    match help.split_once(" [default: ") {
        Some((help, default)) => {
            (help.to_owned(), Some(default.trim_end_matches('.').trim_end_matches(']').to_owned()))
        }
        None => (help, None),
    }
}

fn read_environment(
    command: &Command,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(BTreeMap<String, Setting>, Vec<String>), ConfigurationError> {
    let args = || options_of(command).chain(command.get_arguments().filter(|arg| arg.get_id() == "config"));
    let (mut settings, mut unknown) = (BTreeMap::new(), Vec::new());
    for (variable, value) in environment {
        let Some(variable) = variable.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        let Some(arg) = args().find(|arg| variable_of(arg) == variable) else {
            unknown.push(variable.to_owned());
            continue;
        };
        // As if it were not set, which is more than some ways to start a program can say.
        if value.is_empty() {
            continue;
        }
        let source = Source::Environment(variable.to_owned());
        let values = match value.to_str() {
            _ if !is_flag(arg) => vec![value],
            Some("true") => vec![value],
            Some("false") => Vec::new(),
            _ => return Err(invalid(&source, arg, ON_OR_OFF)),
        };
        settings.insert(arg.get_id().to_string(), Setting { source, values });
    }
    Ok((settings, unknown))
}

fn read_file(command: &Command, path: &Path) -> Result<BTreeMap<String, Setting>, ConfigurationError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigurationError::Unreadable { path: path.to_owned(), source })?;
    let line_at = |offset: usize| 1 + text[..offset].matches('\n').count();
    let table = DeTable::parse(&text).map_err(|error| ConfigurationError::Syntax {
        path: path.to_owned(),
        line: line_at(error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    })?;
    let mut settings = BTreeMap::new();
    for (key, value) in table.get_ref() {
        let line = line_at(key.span().start);
        let key = key.get_ref();
        let Some(arg) = options_of(command).find(|arg| name_of(arg) == key) else {
            let written_otherwise = key.to_lowercase().replace('_', "-");
            let meant = options_of(command).map(name_of).find(|name| *name == written_otherwise);
            let hint = meant.map(|name| format!(", but {name}")).unwrap_or_default();
            let (path, key) = (path.to_owned(), key.to_string());
            return Err(ConfigurationError::UnknownKey { path, line, key, hint });
        };
        let source = Source::File(path.to_owned(), line);
        let values = file_values(arg, value).map_err(|reason| invalid(&source, arg, reason))?;
        settings.insert(arg.get_id().to_string(), Setting { source, values });
    }
    Ok(settings)
}

/// The values of an option as the command line would have them.
fn file_values(arg: &Arg, value: &Spanned<DeValue<'_>>) -> Result<Vec<OsString>, &'static str> {
    match value.get_ref() {
        DeValue::Boolean(is_on) if is_flag(arg) => Ok(is_on.then(|| "true".into()).into_iter().collect()),
        _ if is_flag(arg) => Err(ON_OR_OFF),
        DeValue::Array(values) if is_list(arg) => values.iter().map(scalar).collect(),
        DeValue::Array(_) => Err("has one value, not a list"),
        _ => scalar(value).map(|value| vec![value]),
    }
}

fn scalar(value: &Spanned<DeValue<'_>>) -> Result<OsString, &'static str> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.as_ref().into()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().replace('_', "").into()),
        _ => Err("takes a text or a whole number; write the value as on the command line, in quotes"),
    }
}

fn as_arguments(arg: &Arg, values: &[OsString]) -> Vec<OsString> {
    let name = name_of(arg);
    let argument = |value: &OsString| {
        if is_flag(arg) {
            return format!("--{name}").into();
        }
        let mut argument = OsString::from(format!("--{name}="));
        argument.push(value);
        argument
    };
    values.iter().map(argument).collect()
}

/// Has the values of one option checked by themselves, since an error of all would not say where they come from.
fn check(
    command: &Command,
    arg: &Arg,
    given: &[OsString],
    source: &Source,
) -> Result<(), ConfigurationError> {
    use clap::error::{ContextKind, ErrorKind};
    let program = OsStr::new("maru-server").to_owned();
    let parsed = command.clone().try_get_matches_from(std::iter::once(&program).chain(given));
    match parsed {
        Err(error) if matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            let value = error.get(ContextKind::InvalidValue).map(ToString::to_string).unwrap_or_default();
            let choices = error.get(ContextKind::ValidValue).map(|choices| format!("it is one of {choices}"));
            let reason = cause.or(choices).unwrap_or_else(|| "it takes other values".to_owned());
            Err(invalid(source, arg, &format!("can't be {value:?}: {reason}")))
        }
        // Whether it is enough, and goes with the others, is seen with all of them.
        _ => Ok(()),
    }
}

/// The error of all options, with where those come from that it names and that are not on the command line.
fn with_sources(error: clap::Error, command: &Command, sources: &BTreeMap<String, Source>) -> clap::Error {
    let text = error.to_string();
    let mut notes = String::new();
    for (id, source) in sources {
        let name = name_of(arg_of(command, id));
        if text.contains(&format!("--{name}")) {
            write!(notes, "\n--{name} is set by {source}").expect("a string takes everything");
        }
    }
    if notes.is_empty() || !error.use_stderr() {
        return error;
    }
    let said = text.split("\n\nUsage:").next().unwrap_or_default().trim_start_matches("error: ");
    command.clone().error(error.kind(), format!("{said}\n{notes}"))
}

fn invalid(source: &Source, arg: &Arg, reason: &str) -> ConfigurationError {
    ConfigurationError::Value {
        place: source.to_string(),
        option: name_of(arg).to_owned(),
        reason: reason.to_owned(),
    }
}

/// A number as it is, anything else in quotes.
fn toml_value(text: &str) -> String {
    match text.parse::<i64>() {
        Ok(number) if number.to_string() == text => text.to_owned(),
        _ => {
            let mut quoted = String::from('"');
            for character in text.chars() {
                match character {
                    '"' | '\\' => quoted.extend(['\\', character]),
                    _ if character.is_control() => {
                        quoted.push_str(&format!("\\u{:04X}", u32::from(character)));
                    }
                    _ => quoted.push(character),
                }
            }
            quoted + "\""
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The options by a command line, an environment and a file, if any.
    fn load(
        arguments: &[&str],
        environment: &[(&str, &str)],
        file: Option<&str>,
    ) -> Result<Configuration, ConfigurationError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("maru.toml");
        let mut command_line = vec![OsString::from("maru-server")];
        if let Some(file) = file {
            std::fs::write(&path, file).unwrap();
            command_line.extend(["--config".into(), path.into_os_string()]);
        }
        command_line.extend(arguments.iter().map(OsString::from));
        let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
        Configuration::of(command_line, environment.collect::<Vec<_>>())
    }

    fn shown(configuration: &Configuration, option: &str) -> String {
        let shown = configuration.to_string();
        let line = shown.lines().find(|line| line.starts_with(&format!("{option} = ")));
        line.unwrap_or_else(|| panic!("no line of {option} in {shown}")).to_owned()
    }

    /// A value that an option takes, and another.
    fn two_values(arg: &Arg) -> [&'static str; 2] {
        match arg.get_value_names().unwrap_or_default().first().map(clap::builder::Str::as_str) {
            Some("SIZE") => ["1MiB", "2MiB"],
            Some("TIME") => ["7s", "8s"],
            Some("N" | "UID" | "GID") => ["7", "8"],
            Some("HOST:PORT") => ["127.0.0.1:7", "127.0.0.1:8"],
            Some("DRIVER") => ["ring", "plain"],
            Some("LOG_FORMAT") => ["json", "text"],
            Some("PREFAULT") => ["lazy", "eager"],
            _ => ["/x/7", "/x/8"],
        }
    }

    #[test]
    fn every_option_can_be_set_in_all_ways_and_the_nearest_one_counts() {
        let command = Options::command();
        for arg in options_of(&command) {
            let name = name_of(arg);
            // TLS takes an address, a certificate and its key.
            let tls = ["--listen", "127.0.0.1:5555", "--tls-cert", "/cert.pem", "--tls-key", "/key.pem"];
            let more: &[&str] = match name {
                "tls-cert" => &[&tls[..2], &tls[4..]].concat(),
                "tls-key" => &tls[..4],
                "tls-client-ca" => &tls,
                _ => &[],
            };
            let ([one, other], variable) = (two_values(arg), variable_of(arg));
            let expect = |configuration: Result<Configuration, ConfigurationError>,
                          value: &str,
                          source: &str| {
                let line = shown(&configuration.unwrap(), name);
                assert!(line.contains(value) && line.ends_with(source), "{line} is not {value} of {source}");
            };
            if is_flag(arg) {
                let (on, off) = (format!("{name} = true"), format!("{name} = false"));
                expect(load(more, &[], None), "false", "# the default");
                expect(load(more, &[], Some(&on)), "true", "maru.toml:1");
                expect(load(more, &[(&variable, "false")], Some(&on)), "false", "of the environment");
                expect(load(more, &[(&variable, "true")], Some(&off)), "true", "of the environment");
                let flag = format!("--{name}");
                expect(
                    load(&[&[&*flag], more].concat(), &[(&variable, "false")], Some(&off)),
                    "true",
                    "command line",
                );
                continue;
            }
            let file = format!("{name} = \"{one}\"");
            expect(load(more, &[], Some(&file)), one, "maru.toml:1");
            expect(load(more, &[(&variable, other)], Some(&file)), other, "of the environment");
            expect(load(more, &[(&variable, "")], Some(&file)), one, "maru.toml:1");
            let flag = format!("--{name}");
            let said = [&[&*flag, one], more].concat();
            expect(load(&said, &[(&variable, other)], Some(&file)), one, "# the command line");
        }
    }

    #[test]
    fn what_is_shown_is_a_file_of_the_same_options() {
        let all = ["--pool", "/a \"quoted\" \\ folder", "--allow-uid", "1", "--allow-uid", "2,3", "--fresh"];
        let first = load(&all, &[("MARU_SERVER_GRACE", "3s")], Some("max-instances = 1_000")).unwrap();
        assert_eq!(first.options.allow_uid, [1, 2, 3]);
        assert_eq!(first.options.max_instances, 1000);
        let again = load(&[], &[], Some(&first.to_string())).unwrap();
        let settings = |configuration: &Configuration| {
            let shown = configuration.to_string();
            shown.lines().map(|line| line.split(" # ").next().unwrap().trim().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(settings(&again), settings(&first));
        assert_eq!(again.options.pool, first.options.pool);
    }

    #[test]
    fn the_file_may_be_named_by_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("maru.toml");
        std::fs::write(&path, "grace = \"7s\"").unwrap();
        let named = load(&[], &[("MARU_SERVER_CONFIG", path.to_str().unwrap())], None).unwrap();
        assert_eq!(named.options.grace, std::time::Duration::from_secs(7));
        // The command line comes first here as well.
        let other = load(&[], &[("MARU_SERVER_CONFIG", path.to_str().unwrap())], Some("")).unwrap();
        assert_eq!(other.options.grace, std::time::Duration::from_secs(10));
    }

    #[test]
    fn what_is_wrong_in_a_file_is_told_with_its_line() {
        for (file, says) in [
            ("\npool_size = \"1GiB\"", ":2: there is no option pool_size, but pool-size"),
            ("nothing = 1", ":1: there is no option nothing; --help lists them"),
            ("[pools]\nsize = 1", ":1: there is no option pools"),
            ("grace = 10", ":1: grace can't be \"10\": time unit needed"),
            ("driver = \"fast\"", ":1: driver can't be \"fast\": it is one of auto, ring, plain"),
            ("fresh = 1", ":1: fresh is on or off; write true or false"),
            ("grace = [\"1s\"]", ":1: grace has one value, not a list"),
            ("max-instances = 1.5", ":1: max-instances takes a text or a whole number"),
            ("grace = ", "maru.toml:1: "),
            ("grace = \"1s\"\ngrace = \"2s\"", "maru.toml:2: duplicate key"),
            ("config = \"other.toml\"", ":1: there is no option config"),
        ] {
            let error = load(&[], &[], Some(file)).unwrap_err().to_string();
            assert!(error.contains(says), "{file}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_in_the_environment_is_told_with_the_variable() {
        let error = load(&[], &[("MARU_SERVER_FRESH", "1")], None).unwrap_err().to_string();
        assert!(error.starts_with("MARU_SERVER_FRESH of the environment: fresh is on or off"), "{error}");
        let error = load(&[], &[("MARU_SERVER_MAX_BODY", "7")], None).unwrap_err().to_string();
        assert!(
            error.contains("MARU_SERVER_MAX_BODY of the environment: max-body can't be \"7\": a body has"),
            "{error}"
        );
        // Kubernetes sets such where a service is called maru-server.
        let loaded = load(&[], &[("MARU_SERVER_PORT", "tcp://10.0.0.1:5555"), ("MARU_SERVERS", "x")], None);
        assert_eq!(loaded.unwrap().unknown_variables, ["MARU_SERVER_PORT"]);
    }

    /// `MARU_WRITE_README=1 cargo test -p maru-server --lib` writes it.
    #[test]
    fn the_table_of_the_readme_is_that_of_the_command_line() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
        let readme = std::fs::read_to_string(&path).unwrap();
        let (begin, end) = ("<!-- options -->\n", "<!-- end of the options -->\n");
        let (before, rest) = readme.split_once(begin).unwrap();
        let (written, after) = rest.split_once(end).unwrap();
        let table = table();
        if std::env::var_os("MARU_WRITE_README").is_some() {
            std::fs::write(&path, [before, begin, &table, end, after].concat()).unwrap();
        } else {
            assert_eq!(written, table, "MARU_WRITE_README=1 writes it");
        }
    }

    /// The options as a table of Markdown.
    fn table() -> String {
        let command = Options::command();
        let mut table = String::from("| option | default | meaning |\n| --- | --- | --- |\n");
        for arg in command.get_arguments().filter(|arg| name_of(arg) != "help" && name_of(arg) != "version") {
            let (help, said) = help_and_default(arg);
            let choices = arg.get_possible_values();
            let choices = choices.iter().map(clap::builder::PossibleValue::get_name).collect::<Vec<_>>();
            let value = match arg.get_value_names().unwrap_or_default() {
                _ if is_flag(arg) => String::new(),
                _ if !choices.is_empty() => format!(" {}", choices.join("\\|")),
                names => names.iter().map(|name| format!(" {name}")).collect(),
            };
            let defaults = arg.get_default_values().iter().map(|value| value.to_string_lossy());
            let default = said.unwrap_or_else(|| defaults.collect::<Vec<_>>().join(", "));
            let default = if is_flag(arg) { "off" } else { &default };
            writeln!(table, "| `--{}{value}` | {default} | {} |", name_of(arg), help.replace('|', "\\|"))
                .unwrap();
        }
        table
    }
}
