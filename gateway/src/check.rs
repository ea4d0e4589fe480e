//! `gateway check`: what is wrong with a policy, what is worth a second look in it, and what it amounts to.

mod report;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use filters::policy::{Mistake, Policy};

use self::report::{Diagnostic, Severity};
use crate::load;

/// What `gateway check` is told.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The policy file.
    pub policy: PathBuf,
    /// Take warnings for mistakes.
    #[arg(long)]
    pub deny_warnings: bool,
    /// A file with the warnings that are meant, one a line, as they are told after their place; lines that begin with `#`
    /// are for whoever reads it. They are not told again, and one that no longer applies is a warning.
    #[arg(long, value_name = "FILE")]
    pub accept: Option<PathBuf>,
    /// Say what can be said without the files and variables that the policy names: in a pipeline, which has none.
    #[arg(long)]
    pub without_files: bool,
    /// How to print errors and warnings. `json` is one array of objects with `severity` (`error` or `warning`), `file`,
    /// `line`, `column` (both from 1; 0: the whole file) and `message`.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// How errors and warnings are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people: each with its line of the file.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// What `gateway check` prints.
#[derive(Debug)]
pub struct Summary {
    pub text: String,
    /// How many mistakes are in the policy.
    pub errors: usize,
    /// How many warnings are in it.
    pub warnings: usize,
}

/// Reads the policy, and all that it names unless that is elsewhere. `has_colour`: the text is for a terminal.
pub fn run(options: &Options, has_colour: bool) -> Summary {
    let (found, policy) = find(options);
    let count = |severity| found.iter().filter(|one| one.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let text = match options.format {
        Format::Json => report::json(&found),
        Format::Text => {
            let mut text = report::text(&found, has_colour);
            if let Some(policy) = &policy {
                text.push_str(&amounts_to(options, policy));
            }
            text.push_str(&report::count(&found));
            text
        }
    };
    Summary { text, errors, warnings }
}

/// The errors and warnings, and the policy if it can be served.
fn find(options: &Options) -> (Vec<Diagnostic<'_>>, Option<Policy>) {
    let path = options.policy.as_path();
    let errors = |file, mistakes: Vec<Mistake>| {
        let found =
            mistakes.into_iter().map(|mistake| Diagnostic { severity: Severity::Error, file, mistake });
        (found.collect::<Vec<_>>(), None)
    };
    let read = match options.without_files {
        true => load::read_without_secrets(path).map(|read| read.policy),
        false => load::load(path).map(|loaded| loaded.policy),
    };
    let policy = match read {
        Ok(policy) => policy,
        Err(mistakes) => return errors(path, mistakes),
    };
    let mut warnings = [policy.warnings(), &policy.window_warnings(crate::now_ms())].concat();
    let mut outdated = Vec::new();
    if let Some(file) = &options.accept {
        match accept(file, &mut warnings) {
            Ok(found) => outdated = found.into_iter().map(|mistake| (file.as_path(), mistake)).collect(),
            Err(why) => return errors(file, vec![why]),
        }
    }
    let of_policy = warnings.into_iter().map(|mistake| (path, mistake));
    let warning = |(file, mistake)| Diagnostic { severity: Severity::Warning, file, mistake };
    (of_policy.chain(outdated).map(warning).collect(), Some(policy))
}

fn amounts_to(options: &Options, policy: &Policy) -> String {
    let verdict = match options.without_files {
        true => "ok, as far as its files do not say otherwise",
        false => "ok",
    };
    let mut text = format!("{}: {verdict}\n", options.policy.display());
    for rule in policy.rules() {
        let filters: Vec<_> = rule.chain.names().collect();
        let _ = writeln!(text, "  route {} -> {}: {}", rule.name, load::served_by(rule), filters.join(", "));
    }
    text
}

/// Leaves out the warnings that stand in a file. What is said of those that stand there for nothing.
fn accept(file: &Path, warnings: &mut Vec<Mistake>) -> Result<Vec<Mistake>, Mistake> {
    let text = load::text(file).map_err(Mistake::whole)?;
    let mut outdated = Vec::new();
    for (line, meant) in (1..).zip(text.lines().map(str::trim)) {
        if meant.is_empty() || meant.starts_with('#') {
            continue;
        }
        let before = warnings.len();
        warnings.retain(|warning| warning.on_one_line() != meant);
        if warnings.len() == before {
            let message = "nothing in the policy is warned of like this: remove the line".to_owned();
            outdated.push(Mistake { line, column: 1, message });
        }
    }
    Ok(outdated)
}
