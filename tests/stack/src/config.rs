//! The services' configuration files, from the templates in `config/`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::Service;
use crate::process::Instance;

/// One value of a configuration that differs from the template.
#[derive(Debug, Clone)]
pub struct Setting {
    pub service: Service,
    /// A JSON pointer (RFC 6901), such as `/routes/0/timeout_ms`. Only its last part may be new.
    pub pointer: String,
    /// `null` removes what is there.
    pub value: Value,
}

/// Writes the configuration of every instance into `folder` and returns its path for each.
pub(crate) fn write(
    folder: &Path,
    instances: &[Instance],
    values: impl Fn(Instance) -> BTreeMap<&'static str, String>,
    settings: &[Setting],
) -> anyhow::Result<BTreeMap<Instance, PathBuf>> {
    let one = |&instance: &Instance| {
        let service = instance.service;
        let text = render(template(service), &values(instance))
            .and_then(|text| with_settings(text, settings.iter().filter(|s| s.service == service)))
            .with_context(|| format!("the configuration of {}", instance.name()))?;
        let path = folder.join(format!("{}.yaml", instance.name()));
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok((instance, path))
    };
    let services = instances.iter().filter(|instance| instance.service != Service::State);
    let mut written: BTreeMap<Instance, PathBuf> = services.map(one).collect::<anyhow::Result<_>>()?;
    // The state service reads the edge's policy.
    if let Some(policy) = written.get(&Service::Edge.into()).cloned() {
        written.insert(Service::State.into(), policy);
    }
    Ok(written)
}

fn template(service: Service) -> &'static str {
    match service {
        Service::NpciSim => include_str!("../config/npci-sim.yaml"),
        Service::TxnCore => include_str!("../config/txn-core.yaml"),
        Service::NpciProxy => include_str!("../config/npci-proxy.yaml"),
        Service::Edge | Service::State => include_str!("../config/edge.yaml"),
    }
}

/// Puts the values in for `${name}`.
fn render(template: &str, values: &BTreeMap<&str, String>) -> anyhow::Result<String> {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}').context("a `${` without its `}`")?;
        let value = values.get(name).with_context(|| format!("there is no value for ${{{name}}}"))?;
        text.push_str(before);
        text.push_str(value);
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

/// Without settings the text stays as it is, comments included; otherwise it becomes JSON, which is YAML.
fn with_settings<'a>(yaml: String, settings: impl Iterator<Item = &'a Setting>) -> anyhow::Result<String> {
    let mut settings = settings.peekable();
    if settings.peek().is_none() {
        return Ok(yaml);
    }
    let mut document: Value = serde_saphyr::from_str(&yaml)?;
    for setting in settings {
        set(&mut document, setting)?;
    }
    Ok(serde_json::to_string_pretty(&document)?)
}

fn set(document: &mut Value, setting: &Setting) -> anyhow::Result<()> {
    let Setting { pointer, value, .. } = setting;
    let (parent, last) =
        pointer.rsplit_once('/').with_context(|| format!("{pointer} does not begin with /"))?;
    match document.pointer_mut(parent).with_context(|| format!("there is no {parent}"))? {
        Value::Object(members) if value.is_null() => {
            members.remove(last);
        }
        Value::Object(members) => {
            members.insert(last.to_owned(), value.clone());
        }
        Value::Array(items) => {
            let at: usize = last.parse().with_context(|| format!("{pointer}: {last} is no index"))?;
            let there = items.len();
            match items.get_mut(at) {
                Some(item) => *item = value.clone(),
                None if at == there => items.push(value.clone()),
                None => bail!("{pointer}: there are {there} items only"),
            }
        }
        _ => bail!("{parent} is neither an object nor a list"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn placeholders_are_filled_in() {
        let values = BTreeMap::from([("port", "80".to_owned())]);
        assert_eq!(render("a: 127.0.0.1:${port}\nb: ${port}", &values).unwrap(), "a: 127.0.0.1:80\nb: 80");
        assert!(render("a: ${other}", &values).unwrap_err().to_string().contains("other"));
        assert!(render("a: ${port", &values).is_err());
    }

    #[test]
    fn settings_change_one_value() {
        let yaml = "a:\n  b: 1 # why\nlist: [{c: 127.0.0.1:1}]";
        let setting =
            |pointer: &str, value| Setting { service: Service::Edge, pointer: pointer.into(), value };
        assert_eq!(with_settings(yaml.into(), [].iter()).unwrap(), yaml);
        let cases = [
            (setting("/a/b", json!(2)), json!({"a": {"b": 2}, "list": [{"c": "127.0.0.1:1"}]})),
            (setting("/a/b", Value::Null), json!({"a": {}, "list": [{"c": "127.0.0.1:1"}]})),
            (setting("/list/0/c", json!([])), json!({"a": {"b": 1}, "list": [{"c": []}]})),
            (setting("/list/1", json!(3)), json!({"a": {"b": 1}, "list": [{"c": "127.0.0.1:1"}, 3]})),
        ];
        for (setting, expected) in cases {
            let text = with_settings(yaml.into(), [&setting].into_iter()).unwrap();
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected, "{}", setting.pointer);
        }
        for pointer in ["a", "/x/y", "/list/7", "/list/x", "/a/b/c"] {
            assert!(
                with_settings(yaml.into(), [&setting(pointer, json!(1))].into_iter()).is_err(),
                "{pointer}"
            );
        }
    }
}
