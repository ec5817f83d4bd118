//! The settings of restricted groups: `CATEGORY[,CATEGORY]:KEY=SECRET`.
//!
//! The secret stands there itself, or `@PATH` names the file that holds it, or `env:NAME` the variable. No message says
//! what comes behind the `=`.

use http::HeaderName;

use super::Reader;
use super::typed::{Environment, Origin};
use crate::protocol::category::Category;
use crate::protocol::restricted::{Group, Restrictions, Secret};

/// What the setting `name` restricts; headers begin with `prefix`.
pub(super) fn read(reader: &mut Reader<'_>, name: &'static str, prefix: &'static str) -> Restrictions {
    let origin = reader.typed.origin(name);
    let mut reading =
        Reading { environment: reader.environment, prefix, groups: Vec::new(), mistakes: Vec::new(), is_bare: false };
    for text in reader.list(name) {
        reading.group(&text);
    }
    if reading.is_bare && matches!(origin, Origin::Flag(_)) {
        let warning =
            format!("--{name}: every user of this machine can see the secret; give @PATH or env:NAME instead");
        reader.typed.warnings.push(warning);
    }
    for mistake in reading.mistakes {
        reader.mistake(&origin, mistake);
    }
    Restrictions::new(reading.groups)
}

struct Reading<'a> {
    environment: &'a Environment,
    prefix: &'static str,
    groups: Vec<Group>,
    mistakes: Vec<String>,
    /// A secret stands in the setting itself.
    is_bare: bool,
}

impl Reading<'_> {
    fn group(&mut self, text: &str) {
        let Some((categories, key, secret)) = parts(text) else {
            let shown = text.split('=').next().unwrap_or_default();
            return self.mistakes.push(format!("'{shown}' is not CATEGORY[,CATEGORY]:KEY=SECRET"));
        };
        let mut named = Vec::new();
        for category in categories.split(',').map(str::trim) {
            self.category(category, &mut named);
        }
        let name = format!("{}{key}", self.prefix);
        let header = HeaderName::from_bytes(name.as_bytes());
        if key.is_empty() || header.is_err() {
            self.mistakes.push(format!("'{key}' cannot be in the name of a header"));
        }
        let secret = self.secret(secret).unwrap_or_else(|mistake| {
            self.mistakes.push(format!("the secret of '{key}' {mistake}"));
            String::new()
        });
        if let Ok(header) = header {
            self.groups.push(Group { categories: named, name, header, secret: Secret::new(&secret) });
        }
    }

    fn category(&mut self, name: &str, named: &mut Vec<Category>) {
        let Some(category) = Category::from_name(name) else {
            let all = Category::ALL.map(Category::name).join(", ");
            return self.mistakes.push(format!("'{name}' is not one of {all}"));
        };
        if named.contains(&category) || self.groups.iter().any(|group| group.categories.contains(&category)) {
            return self.mistakes.push(format!("'{name}' is named twice"));
        }
        named.push(category);
    }

    /// The secret that `text` is, or names.
    fn secret(&mut self, text: &str) -> Result<String, String> {
        let secret = if let Some(path) = text.strip_prefix('@') {
            let held = std::fs::read_to_string(path).map_err(|error| format!("is not in the file {path}: {error}"))?;
            held.trim_end_matches(['\r', '\n']).to_owned()
        } else if let Some(name) = text.strip_prefix("env:") {
            let held = self.environment.get(name);
            held.cloned().ok_or_else(|| format!("is not in the environment variable {name}, which is not set"))?
        } else {
            self.is_bare = true;
            text.to_owned()
        };
        match secret {
            secret if secret.is_empty() => Err("is empty".to_owned()),
            // A header cannot hold it, so that no caller could ever tell it.
            secret if secret.chars().any(char::is_control) || secret.trim() != secret => {
                Err("begins or ends with a space, or has a line break or another control character in it".to_owned())
            }
            secret => Ok(secret),
        }
    }
}

fn parts(text: &str) -> Option<(&str, &str, &str)> {
    let (categories, rest) = text.split_once(':')?;
    let (key, secret) = rest.split_once('=')?;
    Some((categories, key, secret)).filter(|_| !categories.contains('='))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::super::{Config, Environment};

    fn read(settings: &[&str]) -> Result<Config, Vec<String>> {
        let repository = format!("--model-repository={}", env!("CARGO_MANIFEST_DIR"));
        let args: Vec<String> = settings.iter().map(|each| (*each).to_owned()).chain([repository]).collect();
        let environment = Environment::from([("KEY".to_owned(), "from-env".to_owned())]);
        Config::read(&args, &environment, None).map_err(|mistakes| mistakes.0)
    }

    #[test]
    fn a_secret_is_given_itself_or_by_a_file_or_a_variable() {
        use crate::protocol::category::Category;
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(&file, "from-file\n").expect("it is writable");
        let path = file.path().display();
        let config = read(&[
            "--grpc-restricted-protocol=inference,health:k=a=b",
            &format!("--grpc-restricted-protocol=trace:file=@{path}"),
            "--grpc-restricted-protocol=logging:env=env:KEY",
            "--http-restricted-api=logging:X-Log=env:KEY",
        ]);
        let config = config.expect("no mistake");
        let grpc = &config.grpc.as_ref().expect("on by default").restrictions;
        let http = &config.http.as_ref().expect("on by default").restrictions;
        for (restrictions, category, header, secret) in [
            (grpc, Category::Inference, "triton-grpc-protocol-k", "a=b"),
            (grpc, Category::Health, "triton-grpc-protocol-k", "a=b"),
            (grpc, Category::Trace, "triton-grpc-protocol-file", "from-file"),
            (grpc, Category::Logging, "triton-grpc-protocol-env", "from-env"),
            (http, Category::Logging, "x-log", "from-env"),
        ] {
            let header: http::HeaderName = header.parse().expect("a name");
            let headers = HeaderMap::from_iter([(header, secret.parse().expect("a value"))]);
            assert_eq!(restrictions.check(category, &headers), Ok(()), "{category:?}");
            assert!(restrictions.check(category, &HeaderMap::new()).is_err(), "{category:?}");
        }
        assert!(!http.restrict(Category::Inference));
        assert_eq!(config.warnings.len(), 1, "of the bare one: {:?}", config.warnings);
        let dump = format!("{config:?}");
        assert!(!dump.contains("a=b") && !dump.contains("from-"), "{dump}");
    }

    #[test]
    fn every_mistake_is_said_at_once_and_no_secret() {
        let mistakes = read(&[
            "--grpc-restricted-protocol=inference:k=hidden",
            "--grpc-restricted-protocol=trace,inference:l=hidden",
            "--grpc-restricted-protocol=infer:m m=hidden",
            "--grpc-restricted-protocol=health=hidden",
            "--http-restricted-api=health:k=@/nonexistent",
            "--http-restricted-api=trace:k=env:NO_SUCH",
            "--http-restricted-api=logging:k=",
        ]);
        let mistakes = mistakes.expect_err("seven mistakes and one more");
        let all =
            "health, metadata, inference, shared-memory, model-config, model-repository, statistics, trace, logging";
        assert_eq!(
            mistakes,
            [
                "--grpc-restricted-protocol: 'inference' is named twice".to_owned(),
                format!("--grpc-restricted-protocol: 'infer' is not one of {all}"),
                "--grpc-restricted-protocol: 'm m' cannot be in the name of a header".to_owned(),
                "--grpc-restricted-protocol: 'health' is not CATEGORY[,CATEGORY]:KEY=SECRET".to_owned(),
                "--http-restricted-api: the secret of 'k' is not in the file /nonexistent: No such file or directory (os error 2)".to_owned(),
                "--http-restricted-api: the secret of 'k' is not in the environment variable NO_SUCH, which is not set".to_owned(),
                "--http-restricted-api: the secret of 'k' is empty".to_owned(),
            ]
        );
    }
}
