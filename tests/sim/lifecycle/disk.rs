//! The repository of one world: real files, which commands and polls look at as the server does.
//!
//! Whatever is written has a size that nothing before it had, so that no change depends on the clock of the file system.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nereid::engine::Key;
use nereid::model::Version;
use tempfile::TempDir;

use crate::chance::Chance;

/// A configuration as an author thinks of it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Stands in the configuration as `max_batch_size`, and tells which one is served: even numbers come from the
    /// repository, odd ones with a load.
    pub generation: u64,
    instances: u64,
    policy: &'static str,
    members: Vec<&'static str>,
    broken: bool,
}

const POLICIES: [&str; 5] = [
    "latest { num_versions: 1 }",
    "latest { num_versions: 2 }",
    "all { }",
    "specific { versions: [ 1 ] }",
    "specific { versions: [ 2 ] }",
];

impl Config {
    /// Any configuration of this model.
    pub fn any(name: &str, generation: u64, chance: &mut Chance) -> Self {
        let members: &[&[&str]] = match name {
            "e" => &[&["a", "b"], &["a", "b"], &["b"], &["a", "c"]],
            "f" => &[&["e", "a"], &["e"], &["c", "e"]],
            _ => &[&[]],
        };
        Self {
            generation,
            instances: chance.between(1, 3),
            policy: chance.of(&POLICIES),
            members: chance.of(members).to_vec(),
            broken: chance.one_in(0.1),
        }
    }

    /// As text of the configuration's own language.
    pub fn text(&self) -> String {
        let Self { generation, instances, policy, .. } = self;
        let tensors = "input { name: \"X\" data_type: TYPE_UINT64 dims: -1 } output { name: \"Y\" data_type: TYPE_UINT64 dims: -1 }";
        let kind = match self.members.is_empty() {
            true => format!("backend: \"identity\" instance_group {{ count: {instances} kind: KIND_CPU }}"),
            false => format!("platform: \"ensemble\" ensemble_scheduling {{ {} }}", self.steps()),
        };
        let broken = if self.broken { "no_such_field: 1" } else { "" };
        format!("max_batch_size: {generation} {kind} version_policy {{ {policy} }} {tensors} {broken}\n")
    }

    /// One member after the other.
    fn steps(&self) -> String {
        let last = self.members.len() - 1;
        let steps = self.members.iter().enumerate().map(|(index, name)| {
            let from = if index == 0 { "X".to_owned() } else { format!("t{index}") };
            let to = if index == last { "Y".to_owned() } else { format!("t{}", index + 1) };
            format!(
                "step {{ model_name: \"{name}\" model_version: -1 input_map {{ key: \"X\" value: \"{from}\" }} \
                 output_map {{ key: \"Y\" value: \"{to}\" }} }}"
            )
        });
        steps.collect()
    }
}

/// The files.
pub struct Disk {
    root: TempDir,
    /// One repository without a name, or two that are namespaces.
    pub namespaces: Vec<String>,
    written: Cell<usize>,
    generations: Cell<u64>,
    configs: RefCell<BTreeMap<Key, Config>>,
    /// The sizes of the versions' files.
    weights: RefCell<BTreeMap<Key, BTreeMap<Version, u64>>>,
}

impl Disk {
    /// These models in each repository, each with a configuration that is right and two versions.
    pub fn new(names: &[&str], namespacing: bool, chance: &mut Chance) -> Self {
        // Thousands of small files a second are no work for a disk.
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let root = root.expect("there is room");
        let place = |name: &str| root.path().join(name).display().to_string();
        let namespaces = if namespacing { vec![place("one"), place("two")] } else { vec![String::new()] };
        let (written, generations) = (Cell::new(0), Cell::new(0));
        let disk =
            Self { root, namespaces, written, generations, configs: RefCell::default(), weights: RefCell::default() };
        for key in disk.keys(names) {
            disk.configure(&key, chance, |config| config.broken = false);
            disk.put(&key, 1);
            disk.put(&key, 2);
        }
        disk
    }

    /// The models of these names in all repositories.
    pub fn keys(&self, names: &[&str]) -> Vec<Key> {
        let within = |namespace: &String| names.iter().map(|name| Key::within(namespace, name)).collect::<Vec<_>>();
        self.namespaces.iter().flat_map(within).collect()
    }

    /// The directories of the repositories.
    pub fn roots(&self) -> Vec<PathBuf> {
        self.namespaces.iter().map(|namespace| self.place(namespace)).collect()
    }

    fn place(&self, namespace: &str) -> PathBuf {
        if namespace.is_empty() { self.root.path().join("models") } else { PathBuf::from(namespace) }
    }

    /// The number of the configuration that is in the repository; 0 for none.
    pub fn generation(&self, key: &Key) -> u64 {
        self.configs.borrow().get(key).map_or(0, |config| config.generation)
    }

    /// The sizes of a model's files by version; each is larger than all before.
    pub fn weights(&self, key: &Key) -> BTreeMap<Version, u64> {
        self.weights.borrow().get(key).cloned().unwrap_or_default()
    }

    /// A number that no configuration had.
    pub fn next_generation(&self, own: bool) -> u64 {
        self.generations.set(self.generations.get() + 2);
        self.generations.get() + u64::from(own)
    }

    /// Somebody changes something of a model.
    pub fn change(&self, key: &Key, chance: &mut Chance) {
        let version = chance.between(1, 3);
        match chance.below(10) {
            0..4 => self.configure(key, chance, |_| {}),
            4..6 => {
                let instances = chance.between(1, 3);
                let known = self.configs.borrow().get(key).cloned();
                if let Some(config) = known {
                    self.write(key, &Config { instances, ..config });
                }
            }
            6..8 => self.put(key, version),
            8 => _ = fs::remove_dir_all(self.directory(key).join(version.to_string())),
            _ => {
                let _ = fs::remove_dir_all(self.directory(key));
                self.configs.borrow_mut().remove(key);
            }
        }
    }

    fn configure(&self, key: &Key, chance: &mut Chance, change: impl FnOnce(&mut Config)) {
        let mut config = Config::any(&key.name, self.next_generation(false), chance);
        change(&mut config);
        self.write(key, &config);
    }

    fn write(&self, key: &Key, config: &Config) {
        let padding = "#".repeat(self.count() + 2000 - config.text().len());
        let directory = self.directory(key);
        fs::create_dir_all(&directory).expect("there is room");
        fs::write(directory.join("config.pbtxt"), format!("{}{padding}\n", config.text())).expect("there is room");
        self.configs.borrow_mut().insert(key.clone(), config.clone());
    }

    fn put(&self, key: &Key, version: Version) {
        let directory = self.directory(key).join(version.to_string());
        fs::create_dir_all(&directory).expect("there is room");
        let bytes = self.count();
        fs::write(directory.join("weights"), vec![0; bytes]).expect("there is room");
        self.weights.borrow_mut().entry(key.clone()).or_default().insert(version, bytes as u64);
    }

    fn count(&self) -> usize {
        self.written.set(self.written.get() + 1);
        self.written.get()
    }

    fn directory(&self, key: &Key) -> PathBuf {
        self.place(&key.namespace).join(&*key.name)
    }
}
