//! `gateway check`: what is wrong with a policy, what is worth a second look in it, and what it amounts to.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use filters::policy::Mistake;

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
}

/// A policy that can be served, for a person who checks it.
#[derive(Debug)]
pub struct Summary {
    pub text: String,
    /// How many warnings are in it.
    pub warnings: usize,
}

/// Reads the policy, and all that it names unless that is elsewhere.
///
/// # Errors
/// Every mistake, a line each.
pub fn run(options: &Options) -> Result<Summary, String> {
    let path = &options.policy;
    let told = |mistakes: Vec<Mistake>| load::told(&mistakes, path);
    let (policy, verdict) = match options.without_files {
        true => {
            let read = load::read_without_secrets(path).map_err(told)?;
            (read.policy, "ok, as far as its files do not say otherwise")
        }
        false => (load::load(path).map_err(told)?.policy, "ok"),
    };
    let times = policy.window_warnings(crate::now_ms());
    let mut warnings: Vec<&Mistake> = policy.warnings().iter().chain(&times).collect();
    let outdated = match &options.accept {
        Some(file) => accept(file, &mut warnings).map_err(|why| load::told(&[why], file))?,
        None => Vec::new(),
    };
    let warnings: Vec<String> =
        warnings.iter().map(|warning| warning.in_file(&path.to_string_lossy())).collect();
    let mut text = String::new();
    for warning in warnings.iter().chain(&outdated) {
        let _ = writeln!(text, "warning: {warning}");
    }
    let _ = writeln!(text, "{}: {verdict}", path.display());
    for rule in policy.rules() {
        let filters: Vec<_> = rule.chain.names().collect();
        let _ = writeln!(text, "  route {} -> {}: {}", rule.name, load::served_by(rule), filters.join(", "));
    }
    Ok(Summary { text, warnings: warnings.len() + outdated.len() })
}

/// Leaves out the warnings that stand in a file. What is said of those that stand there for nothing.
fn accept(file: &Path, warnings: &mut Vec<&Mistake>) -> Result<Vec<String>, Mistake> {
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
            outdated.push(Mistake { line, column: 1, message }.in_file(&file.to_string_lossy()));
        }
    }
    Ok(outdated)
}
