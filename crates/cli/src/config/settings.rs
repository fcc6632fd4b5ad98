use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Environment;
use super::host_json::{member, parse_lenient};
use super::identity::{Connection, IdentityConnection};
use crate::args::ConnectionString;

/// Application settings: the environment, then local.settings.json.
pub(super) struct AppSettings<'a> {
    environment: &'a Environment,
    values: Vec<(String, String)>,
}

impl<'a> AppSettings<'a> {
    pub(super) fn load(environment: &'a Environment) -> Result<Self> {
        let path = environment.directory.join("local.settings.json");
        let file = match fs::read_to_string(&path) {
            Ok(text) => parse_lenient(&text)
                .with_context(|| format!("local.settings.json is not valid. file=`{}`", path.display()))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Value::Null,
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("could not read the settings. file=`{}`", path.display()));
            }
        };
        let mut values = Vec::new();
        for (section, prefix) in [("Values", ""), ("ConnectionStrings", "ConnectionStrings:")] {
            for (name, value) in member(&file, section).and_then(Value::as_object).into_iter().flatten() {
                if let Some(value) = value.as_str() {
                    values.push((format!("{prefix}{name}"), value.to_owned()));
                }
            }
        }
        Ok(Self { environment, values })
    }

    /// A setting that is not empty.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        // The two separators mean the same, and variables cannot hold a colon everywhere.
        let variable = |name: &str| (self.environment.variable)(name);
        variable(name)
            .or_else(|| variable(&name.replace(':', "__")))
            .or_else(|| {
                let name = name.replace("__", ":");
                let found =
                    self.values.iter().find(|(k, _)| k.replace("__", ":").eq_ignore_ascii_case(&name));
                found.map(|(_, v)| v.clone())
            })
            .filter(|value| !value.trim().is_empty())
    }

    /// What is configured under a connection name: the setting of this name, or those that begin with it
    /// (`{name}__accountName`), else under the prefixes that the Functions host knows.
    pub(super) fn connection(&self, name: &str) -> Result<Option<Connection>> {
        let candidates = [
            name.to_owned(),
            format!("ConnectionStrings:AzureWebJobs{name}"),
            format!("AzureWebJobs{name}"),
            format!("ConnectionStrings:{name}"),
        ];
        for candidate in &candidates {
            if let Some(text) = self.get(candidate) {
                return Ok(Some(ConnectionString(text).into()));
            }
            if let Some(found) = IdentityConnection::of_settings(self, candidate)? {
                return Ok(Some(Connection::Identity(found)));
            }
        }
        Ok(None)
    }

    /// Replaces each `%NAME%` by the setting of that name.
    pub(super) fn expand(&self, text: &str) -> Result<String> {
        let mut parts = text.split('%');
        let mut expanded = parts.next().unwrap_or_default().to_owned();
        while let Some(name) = parts.next() {
            let Some(rest) = parts.next() else {
                bail!("a % has no counterpart. text=`{text}`");
            };
            let value = self.get(name).with_context(|| format!("no such setting. setting=`{name}`"))?;
            expanded.push_str(&value);
            expanded.push_str(rest);
        }
        Ok(expanded)
    }
}
