//! Whether a route is open: for everybody, or for those of whom a feature flag says so.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::admission::route_not_found;
use crate::filter::{Context, Filter, Host, Refusal, Request, Verdict};
use crate::flags::When;
use crate::policy::{Settings, Site, Unusable};

/// Flags that open a route. Until the flags were read, and while one of them says nothing, it is closed.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What flags must say, all of them.
    pub when: Vec<When>,
    /// How requests are refused while the route is closed; absent: `not_found`.
    pub closed: Option<Closed>,
}

/// How a closed route looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Closed {
    /// As if it were not there: 404.
    #[default]
    NotFound,
    /// As if it were out of order: 503.
    Unavailable,
}

impl Settings for Config {
    fn and(mut self, mut child: Self) -> Self {
        self.when.append(&mut child.when);
        Self { when: self.when, closed: child.closed.or(self.closed) }
    }

    fn flags(&self) -> Vec<&When> {
        self.when.iter().collect()
    }

    fn build(self, _site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        if self.when.is_empty() {
            return Err(Unusable::new("`when` needs one flag at least"));
        }
        if let Some(why) = self.when.iter().find_map(When::mistake) {
            return Err(Unusable::new(why));
        }
        Ok(Box::new(Feature { when: self.when, closed: self.closed.unwrap_or_default() }))
    }
}

#[derive(Debug)]
struct Feature {
    when: Vec<When>,
    closed: Closed,
}

impl Filter for Feature {
    fn name(&self) -> &'static str {
        "feature"
    }

    fn head(&self, request: &Request<'_>, host: &dyn Host, context: &mut Context) -> Verdict {
        // Each is asked, so that what was counted of them does not hang on their order.
        let mut open = true;
        for when in &self.when {
            open &= when.holds(request, host, context).unwrap_or(false);
        }
        match (open, self.closed) {
            (true, _) => Verdict::Pass,
            (false, Closed::NotFound) => route_not_found().into(),
            (false, Closed::Unavailable) => {
                Refusal::new(503, "feature_off", "This is switched off for now. Try again later.").into()
            }
        }
    }
}
