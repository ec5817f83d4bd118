//! The graph of an ensemble: which tensors each step takes and gives, held against the members. Pure.
//!
//! That the graph is complete, without cycles and without loose ends, the configuration alone tells: `repository` has
//! checked it. Here the models behind the names are known too. Begin with [`Plan::new`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::infer::RequestedOutput;
use crate::model::{Device, Ensemble, EnsembleStep, Instances, ModelConfig, TensorSpec, Version};
use crate::tensor::Shape;

/// More ensembles within each other would only make a request's way through them deep.
const DEPTH_MAX: usize = 16;

/// What a graph does not fit its members in: a key of the configuration, and what is wrong there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key's path from the top of the ensemble's configuration.
    pub key: String,
    /// What is wrong, for people.
    pub message: String,
    /// Names that may have been meant.
    pub candidates: Vec<String>,
}

/// A model that a step runs.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its configuration.
    pub config: Arc<ModelConfig>,
    /// How many ensembles are within each other in it; 0 for a model that is none.
    pub depth: usize,
    /// Whether tensors may stay with its backend on their way to it and from it.
    pub keeps_outputs: bool,
}

/// A graph that fits its members, by numbers instead of names.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The tensor that each input of the ensemble is, in the order of its configuration.
    pub inputs: Vec<usize>,
    /// The outputs of the ensemble, in the order of its configuration.
    pub outputs: Vec<Output>,
    /// The steps in the order of the configuration.
    pub steps: Vec<Step>,
    /// The steps that take each tensor.
    pub takers: Vec<Vec<usize>>,
    /// The step that gives each tensor; `None` for an input of the ensemble.
    pub givers: Vec<Option<usize>>,
    /// How many ensembles are within each other, this one included.
    pub depth: usize,
    /// Whether tensors have a first dimension for the batch in requests to the ensemble.
    pub batches: bool,
    /// Whether a request may have any number of responses, because it may in a step.
    pub decoupled: bool,
    /// The most requests at a time.
    pub requests_max: usize,
    /// The most requests at a time in each step; `None` for any number.
    pub step_requests_max: Option<usize>,
}

/// An output of the ensemble.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its name.
    pub name: Arc<str>,
    /// The tensor that it is.
    pub tensor: usize,
    /// Its dimensions in the graph, without the batch dimension; `None` for any.
    pub dims: Option<Shape>,
}

/// One model of the graph.
#[derive(Clone, Debug)]
pub struct Step {
    /// The model's name.
    pub model: String,
    /// Its version; `None` for the highest that is ready.
    pub version: Option<Version>,
    /// What it takes.
    pub inputs: Vec<Input>,
    /// The names of its outputs that the graph uses, and the tensors that they become.
    pub outputs: Vec<(Arc<str>, usize)>,
    /// The outputs to ask for; empty if all of the model's are used, and none is to stay where it is computed.
    pub wanted: Vec<RequestedOutput>,
    /// Whether the model's tensors have a first dimension for the batch.
    pub batches: bool,
    /// Whether it answers any number of times.
    pub decoupled: bool,
    /// The steps that wait for this one, directly or not.
    pub followers: BTreeSet<usize>,
}

/// An input of a step.
#[derive(Clone, Debug)]
pub struct Input {
    /// The model's name for it.
    pub name: String,
    /// The tensor that it gets.
    pub tensor: usize,
    /// Its dimensions without the batch dimension; `None` for any.
    pub dims: Option<Shape>,
}

/// Who says what a tensor is.
struct Source<'a> {
    model: &'a str,
    spec: &'a TensorSpec,
    dims: Option<&'a Shape>,
    batches: bool,
}

/// Looks at an ensemble together with its members.
struct Look<'a> {
    config: &'a ModelConfig,
    ensemble: &'a Ensemble,
    steps: &'a [EnsembleStep],
    members: &'a [Member],
    faults: Vec<Fault>,
}

impl Plan {
    /// The plan of `ensemble`, whose configuration as a whole is `config`; `members` are those of the steps, in order.
    ///
    /// # Errors
    /// Everything in which the members do not fit the graph.
    pub fn new(config: &ModelConfig, ensemble: &Ensemble, members: &[Member]) -> Result<Self, Vec<Fault>> {
        let mut look = Look { config, ensemble, steps: &ensemble.steps, members, faults: Vec::new() };
        look.depths();
        look.batch_sizes();
        look.mapped_names();
        look.tensors();
        let decoupled = look.responses();
        if look.faults.is_empty() { Ok(look.plan(decoupled)) } else { Err(look.faults) }
    }

    /// Which steps must run so that these outputs are there.
    pub fn needed(&self, wanted: &[usize]) -> Vec<bool> {
        let mut needed = vec![false; self.steps.len()];
        let mut tensors: Vec<usize> = wanted.iter().map(|&output| self.outputs[output].tensor).collect();
        while let Some(tensor) = tensors.pop() {
            if let Some(giver) = self.givers[tensor]
                && !std::mem::replace(&mut needed[giver], true)
            {
                tensors.extend(self.steps[giver].inputs.iter().map(|input| input.tensor));
            }
        }
        needed
    }
}

fn step_key(index: usize, field: &str) -> String {
    format!("ensemble_scheduling.step[{index}].{field}")
}

impl<'a> Look<'a> {
    fn fault(&mut self, key: String, message: String) {
        self.fault_near(key, message, Vec::new());
    }

    fn fault_near(&mut self, key: String, message: String, candidates: Vec<String>) {
        let message = format!("in ensemble '{}', {message}", self.config.name);
        self.faults.push(Fault { key, message, candidates });
    }

    fn depths(&mut self) {
        let members = self.members;
        for (index, member) in members.iter().enumerate().filter(|(_, member)| member.depth >= DEPTH_MAX) {
            let message =
                format!("model '{}' makes more than {DEPTH_MAX} ensembles within each other", member.config.name);
            self.fault(step_key(index, "model_name"), message);
        }
    }

    fn batch_sizes(&mut self) {
        let members = self.members;
        for (index, Member { config: member, .. }) in members.iter().enumerate() {
            // A model without a batch dimension may still fit, by its dimensions.
            if member.max_batch_rows > 0 && member.max_batch_rows < self.config.max_batch_rows {
                let message = format!(
                    "the maximum batch size is {}, but it contains model '{}' which only allows maximum batch size to be {}",
                    self.config.max_batch_rows, member.name, member.max_batch_rows
                );
                self.fault(step_key(index, "model_name"), message);
            }
        }
    }

    /// Names of the members' inputs and outputs.
    fn mapped_names(&mut self) {
        let (steps, members) = (self.steps, self.members);
        for (index, (step, Member { config: member, .. })) in steps.iter().zip(members).enumerate() {
            let names = |specs: &[TensorSpec]| specs.iter().map(|spec| spec.name.to_string()).collect::<Vec<_>>();
            for (name, tensor) in step.inputs.iter().filter(|(name, _)| find(&member.inputs, name).is_none()) {
                let message = format!(
                    "ensemble tensor '{tensor}' is mapping to non-existing input '{name}' in model '{}'",
                    member.name
                );
                self.fault_near(step_key(index, &format!("input_map[{name}]")), message, names(&member.inputs));
            }
            for spec in member.inputs.iter().filter(|spec| !spec.optional && !step.inputs.contains_key(&*spec.name)) {
                let message =
                    format!("input '{}' in model '{}' is not mapped to any ensemble tensors", spec.name, member.name);
                self.fault(step_key(index, "input_map"), message);
            }
            for (name, tensor) in step.outputs.iter().filter(|(name, _)| find(&member.outputs, name).is_none()) {
                let message = format!(
                    "ensemble tensor '{tensor}' is mapped from non-existing output '{name}' in model '{}'",
                    member.name
                );
                self.fault_near(step_key(index, &format!("output_map[{name}]")), message, names(&member.outputs));
            }
        }
    }

    /// Types and dimensions: what takes a tensor against what gives it.
    fn tensors(&mut self) {
        let (config, steps, members) = (self.config, self.steps, self.members);
        let own = |spec: &'a TensorSpec| Source {
            model: &config.name,
            spec,
            dims: spec.reshape.as_ref().or(spec.dims.as_ref()),
            batches: config.max_batch_rows > 0,
        };
        let of = |member: &'a ModelConfig, spec: &'a TensorSpec| Source {
            model: &member.name,
            spec,
            dims: spec.dims.as_ref(),
            batches: member.max_batch_rows > 0,
        };
        let mut given: BTreeMap<&str, Source<'a>> = config.inputs.iter().map(|spec| (&*spec.name, own(spec))).collect();
        for (step, Member { config: member, .. }) in steps.iter().zip(members) {
            for (name, tensor) in &step.outputs {
                if let Some(spec) = find(&member.outputs, name) {
                    given.insert(tensor, of(member, spec));
                }
            }
        }
        for (index, (step, Member { config: member, .. })) in steps.iter().zip(members).enumerate() {
            for (name, tensor) in &step.inputs {
                if let (Some(source), Some(spec)) = (given.get(tensor.as_str()), find(&member.inputs, name)) {
                    let key = step_key(index, &format!("input_map[{name}]"));
                    if let Some(message) = inconsistent(tensor, source, &of(member, spec)) {
                        self.fault(key, message);
                    }
                }
            }
        }
        for (index, spec) in config.outputs.iter().enumerate() {
            if let Some(source) = given.get(&*spec.name)
                && let Some(message) = inconsistent(&spec.name, source, &own(spec))
            {
                self.fault(format!("output[{index}]"), message);
            }
        }
    }

    /// Checks that what comes together belongs together: responses of different decoupled models do not. Gives whether
    /// the ensemble is decoupled.
    fn responses(&mut self) -> bool {
        let (steps, members) = (self.steps, self.members);
        // By tensor the number of the step whose responses it comes with; 0 for the request itself.
        let mut origins: BTreeMap<&str, usize> = self.config.inputs.iter().map(|spec| (&*spec.name, 0)).collect();
        let mut decoupled = false;
        for index in self.order() {
            let step = &steps[index];
            let of_inputs: BTreeSet<usize> =
                step.inputs.values().filter_map(|tensor| origins.get(tensor.as_str()).copied()).collect();
            if of_inputs.len() > 1 {
                let message = format!(
                    "step of model '{}' receives inputs originated from different decoupled models",
                    step.model
                );
                self.fault(step_key(index, "input_map"), message);
            }
            decoupled |= members[index].config.decoupled;
            let own = if members[index].config.decoupled { index + 1 } else { of_inputs.first().copied().unwrap_or(0) };
            origins.extend(step.outputs.values().map(|tensor| (tensor.as_str(), own)));
        }
        let of_outputs: BTreeSet<usize> =
            self.config.outputs.iter().filter_map(|spec| origins.get(&*spec.name).copied()).collect();
        if of_outputs.len() > 1 {
            self.fault("output".to_owned(), "the outputs originate from different decoupled models".to_owned());
        }
        decoupled
    }

    /// The steps in an order in which each stands behind those that it waits for.
    fn order(&self) -> Vec<usize> {
        let mut there: BTreeSet<&str> = self.config.inputs.iter().map(|spec| &*spec.name).collect();
        let mut left: Vec<usize> = (0..self.steps.len()).collect();
        let mut order = Vec::new();
        loop {
            let (ready, waiting): (Vec<usize>, Vec<usize>) =
                left.iter().partition(|&&index| self.steps[index].inputs.values().all(|name| there.contains(&**name)));
            if ready.is_empty() {
                return order;
            }
            there.extend(ready.iter().flat_map(|&index| self.steps[index].outputs.values().map(String::as_str)));
            order.extend(ready);
            left = waiting;
        }
    }

    fn plan(&self, decoupled: bool) -> Plan {
        let config = self.config;
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let of_steps = self.steps.iter().flat_map(|step| step.inputs.values().chain(step.outputs.values()));
        let names = config.inputs.iter().chain(&config.outputs).map(|spec| &*spec.name);
        for name in names.chain(of_steps.map(String::as_str)) {
            let next = numbers.len();
            numbers.entry(name).or_insert(next);
        }
        let mut steps: Vec<Step> = self
            .steps
            .iter()
            .zip(self.members)
            .map(|(step, member)| plan_step(step, &member.config, &numbers))
            .collect();
        let mut takers = vec![Vec::new(); numbers.len()];
        let mut givers = vec![None; numbers.len()];
        for (index, step) in steps.iter().enumerate() {
            step.inputs.iter().for_each(|input| takers[input.tensor].push(index));
            step.outputs.iter().for_each(|(_, tensor)| givers[*tensor] = Some(index));
        }
        for index in self.order().into_iter().rev() {
            let next: BTreeSet<usize> =
                steps[index].outputs.iter().flat_map(|(_, tensor)| takers[*tensor].iter().copied()).collect();
            let further = next.iter().flat_map(|&next| steps[next].followers.iter().copied()).collect::<Vec<_>>();
            steps[index].followers = next.into_iter().chain(further).collect();
        }
        for (index, step) in steps.iter_mut().enumerate() {
            let is_output = |tensor: usize| config.outputs.iter().any(|spec| numbers[&*spec.name] == tensor);
            step.keep(|tensor| !is_output(tensor) && stays(&self.members[index], &takers[tensor], self.members));
        }
        let output = |spec: &TensorSpec| Output {
            name: spec.name.clone(),
            tensor: numbers[&*spec.name],
            dims: spec.reshape.clone().or_else(|| spec.dims.clone()),
        };
        Plan {
            inputs: config.inputs.iter().map(|spec| numbers[&*spec.name]).collect(),
            outputs: config.outputs.iter().map(output).collect(),
            steps,
            takers,
            givers,
            depth: 1 + self.members.iter().map(|member| member.depth).max().unwrap_or(0),
            batches: config.max_batch_rows > 0,
            decoupled,
            requests_max: self.ensemble.queue.requests_max,
            step_requests_max: self.ensemble.step_requests_max,
        }
    }
}

fn plan_step(step: &EnsembleStep, member: &ModelConfig, numbers: &BTreeMap<&str, usize>) -> Step {
    let input = |(name, tensor): (&String, &String)| Input {
        name: name.clone(),
        tensor: numbers[tensor.as_str()],
        dims: find(&member.inputs, name).and_then(|spec| spec.dims.clone()),
    };
    let all = member.outputs.iter().all(|spec| step.outputs.contains_key(&*spec.name));
    let asked = step.outputs.keys().filter(|_| !all);
    Step {
        model: step.model.clone(),
        version: step.version,
        inputs: step.inputs.iter().map(input).collect(),
        outputs: step.outputs.iter().map(|(name, tensor)| (name.as_str().into(), numbers[tensor.as_str()])).collect(),
        wanted: asked.map(|name| wanted(name)).collect(),
        batches: member.max_batch_rows > 0,
        decoupled: member.decoupled,
        followers: BTreeSet::new(),
    }
}

fn wanted(name: &str) -> RequestedOutput {
    RequestedOutput { name: name.to_owned(), classification: 0, keep: false }
}

impl Step {
    /// Asks for those of its tensors to be left where they are computed for which `stays`.
    fn keep(&mut self, stays: impl Fn(usize) -> bool) {
        let kept: BTreeSet<Arc<str>> =
            self.outputs.iter().filter(|(_, tensor)| stays(*tensor)).map(|(name, _)| name.clone()).collect();
        if kept.is_empty() {
            return;
        }
        let asked = self.outputs.iter().map(|(name, _)| RequestedOutput { keep: kept.contains(name), ..wanted(name) });
        self.wanted = asked.collect();
    }
}

/// Whether a tensor is best left where `giver` computes it: all who take it can take it there, and none of them is on
/// another kind of device.
fn stays(giver: &Member, takers: &[usize], members: &[Member]) -> bool {
    let takers = || takers.iter().map(|&taker| &members[taker]);
    let takes = |taker: &Member| taker.keeps_outputs && taker.config.backend == giver.config.backend;
    let instances = || std::iter::once(giver).chain(takers()).flat_map(|member| &member.config.instances);
    let on_host = |instances: &Instances| instances.device == Device::Cpu;
    let one_kind = instances().all(on_host) || !instances().any(on_host);
    giver.keeps_outputs && takers().next().is_some() && takers().all(takes) && one_kind
}

fn find<'a>(specs: &'a [TensorSpec], name: &str) -> Option<&'a TensorSpec> {
    specs.iter().find(|spec| *spec.name == *name)
}

/// Why a tensor that is `given` so cannot be `taken` so; `None` if it can, as far as is known before a request comes.
fn inconsistent(tensor: &str, given: &Source<'_>, taken: &Source<'_>) -> Option<String> {
    let models = |what: &str, one: String, other: String| {
        format!(
            "ensemble tensor '{tensor}': inconsistent {what}: {one} is inferred from model '{}' while {other} is \
             inferred from model '{}'",
            given.model, taken.model
        )
    };
    if let (Some(one), Some(other)) = (given.spec.dtype, taken.spec.dtype)
        && one != other
    {
        return Some(models("data type", one.to_string(), other.to_string()));
    }
    let (one, other) = (given.dims?, taken.dims?);
    let full = |dims: &Shape, batches: bool| if batches { dims.with_rows(-1) } else { dims.clone() };
    let (full_one, full_other) = (full(one, given.batches), full(other, taken.batches));
    // A model without a batch dimension may take batches of one with it as their first dimension.
    let fits = may_equal(one, other) || may_equal(&full_one, &full_other);
    (!fits).then(|| models("shape", full_one.to_string(), full_other.to_string()))
}

/// Whether two shapes may be the same, -1 being any size.
pub fn may_equal(one: &[i64], other: &[i64]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one == other || *one == -1 || *other == -1)
}

/// The shape that a tensor has for a model of these dimensions. It may come from a model with a batch dimension (then it
/// has `rows`) and go to one without, or the other way.
pub fn fitted(shape: &Shape, rows: Option<usize>, dims: Option<&Shape>, batches: bool) -> Shape {
    let Some(dims) = dims.filter(|_| batches != rows.is_some()) else { return shape.clone() };
    let equal = may_equal(dims, shape);
    match rows {
        // What one model gave is one row of the other's batch.
        None if equal => shape.with_rows(1),
        // A batch of one is what the other takes.
        Some(1) if !equal && !shape.is_empty() => Shape::new(&shape[1..]),
        _ => shape.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::puppet::{graph, member, specs, step};
    use super::*;
    use crate::tensor::DataType;

    fn config(inputs: &[&str], outputs: &[&str]) -> ModelConfig {
        ModelConfig { inputs: specs(inputs), outputs: specs(outputs), ..ModelConfig::new("e", "") }
    }

    fn changed(member: Member, change: impl FnOnce(&mut ModelConfig)) -> Member {
        let mut config = (*member.config).clone();
        change(&mut config);
        Member { config: Arc::new(config), ..member }
    }

    fn messages(faults: &[Fault]) -> Vec<String> {
        faults.iter().map(|fault| format!("{}: {}", fault.key, fault.message)).collect()
    }

    #[test]
    fn everything_that_does_not_fit_is_told_at_once() {
        let steps = vec![step("a", &["x", "z"], &["m"]), step("b", &["m"], &["y", "n"]), step("c", &["n"], &["w"])];
        let config = ModelConfig { max_batch_rows: 8, ..config(&["x", "z"], &["y", "w"]) };
        let members = [
            changed(member(&steps[0], false), |a| {
                a.inputs.remove(1);
                a.inputs.push(TensorSpec::new("other", None, None));
                a.outputs[0].dtype = Some(DataType::Int64);
                a.max_batch_rows = 4;
            }),
            changed(member(&steps[1], false), |b| {
                b.outputs[0].dims = Some(Shape::new(&[2]));
                b.outputs.remove(1);
                b.max_batch_rows = 8;
            }),
            Member { depth: 16, ..changed(member(&steps[2], false), |c| c.max_batch_rows = 8) },
        ];
        let faults = Plan::new(&config, &graph(steps), &members).expect_err("little fits");
        assert_eq!(
            messages(&faults),
            [
                "ensemble_scheduling.step[2].model_name: in ensemble 'e', model 'c' makes more than 16 ensembles within \
                 each other",
                "ensemble_scheduling.step[0].model_name: in ensemble 'e', the maximum batch size is 8, but it contains \
                 model 'a' which only allows maximum batch size to be 4",
                "ensemble_scheduling.step[0].input_map[z]: in ensemble 'e', ensemble tensor 'z' is mapping to \
                 non-existing input 'z' in model 'a'",
                "ensemble_scheduling.step[0].input_map: in ensemble 'e', input 'other' in model 'a' is not mapped to any \
                 ensemble tensors",
                "ensemble_scheduling.step[1].output_map[y]: in ensemble 'e', ensemble tensor 'y' is mapped from \
                 non-existing output 'y' in model 'b'",
                "ensemble_scheduling.step[1].input_map[m]: in ensemble 'e', ensemble tensor 'm': inconsistent data \
                 type: INT64 is inferred from model 'a' while FP32 is inferred from model 'b'",
                "ensemble_scheduling.step[2].input_map[n]: in ensemble 'e', ensemble tensor 'n': inconsistent shape: \
                 [-1,2] is inferred from model 'b' while [-1,1] is inferred from model 'c'",
            ]
        );
    }

    #[test]
    fn a_decoupled_tensor_and_one_of_the_request_do_not_come_together() {
        let steps = vec![step("a", &["in"], &["p"]), step("b", &["in", "p"], &["out"])];
        let members = [member(&steps[0], true), member(&steps[1], false)];
        let faults = Plan::new(&config(&["in"], &["out"]), &graph(steps), &members).expect_err("they do not belong");
        assert_eq!(
            messages(&faults),
            [
                "ensemble_scheduling.step[1].input_map: in ensemble 'e', step of model 'b' receives inputs originated from \
              different decoupled models"
            ]
        );
    }

    #[test]
    fn an_optional_input_need_not_be_mapped_and_unknown_dims_fit_any() {
        let steps = vec![step("a", &["x"], &["y"])];
        let fits = changed(member(&steps[0], false), |a| {
            a.inputs.push(TensorSpec { optional: true, ..TensorSpec::new("more", None, None) });
            a.outputs[0] = TensorSpec::new("y", None, None);
        });
        let plan = Plan::new(&config(&["x"], &["y"]), &graph(steps), &[fits]).expect("it fits");
        assert!(!plan.decoupled && plan.steps[0].wanted.is_empty());
        assert_eq!(plan.depth, 1);
    }

    #[test]
    fn a_tensor_stays_where_it_is_computed_if_all_who_take_it_can_take_it_there() {
        let steps =
            || vec![step("a", &["in"], &["m", "o"]), step("b", &["m"], &["n"]), step("c", &["m", "n"], &["out"])];
        let kept = |change: &dyn Fn(&mut Member, &mut ModelConfig)| {
            let members: Vec<Member> = steps().iter().map(|step| member(step, false)).collect();
            let members = members.into_iter().map(|mut member| {
                member.keeps_outputs = true;
                let mut config = (*member.config).clone();
                config.instances = vec![Instances::new("g", Device::Cpu, 1)];
                change(&mut member, &mut config);
                Member { config: Arc::new(config), ..member }
            });
            let members: Vec<Member> = members.collect();
            let plan = Plan::new(&config(&["in"], &["o", "out"]), &graph(steps()), &members).expect("it fits");
            let kept = |step: &Step| step.wanted.iter().map(|output| (output.name.clone(), output.keep)).collect();
            plan.steps.iter().map(kept).collect::<Vec<Vec<(String, bool)>>>()
        };
        let is = |config: &ModelConfig, name: &str| *config.name == *name;
        let named = |name: &str, keep| (name.to_owned(), keep);
        let all = [vec![named("m", true), named("o", false)], vec![named("n", true)], Vec::new()];
        assert_eq!(kept(&|_, _| {}), all, "no output of the ensemble");
        let only_n = [Vec::new(), vec![named("n", true)], Vec::new()];
        assert_eq!(kept(&|member, config| member.keeps_outputs = !is(config, "a")), only_n, "its giver cannot");
        let none = [(); 3].map(|()| Vec::new());
        assert_eq!(kept(&|member, config| member.keeps_outputs = !is(config, "c")), none, "a taker cannot");
        let other = |_: &mut Member, config: &mut ModelConfig| {
            if is(config, "c") {
                config.backend = "other".to_owned();
            }
        };
        assert_eq!(kept(&other), none, "a taker is of another backend");
        let elsewhere = |_: &mut Member, config: &mut ModelConfig| {
            if is(config, "a") {
                config.instances.push(Instances::new("h", Device::Cuda(0), 1));
            }
        };
        assert_eq!(kept(&elsewhere), only_n, "one is on the host, the other not");
    }

    #[test]
    fn tensors_change_between_models_with_and_without_a_batch_dimension() {
        let shape = |dims: &[i64]| Shape::new(dims);
        let dims = shape(&[-1, 3]);
        // From a batch of one to a model without: the batch itself if that fits, else what is in it.
        assert_eq!(fitted(&shape(&[2, 3]), Some(2), Some(&dims), false), shape(&[2, 3]));
        assert_eq!(fitted(&shape(&[1, 4, 3]), Some(1), Some(&dims), false), shape(&[4, 3]));
        // From a model without to one with: as a batch of one, or as it is.
        assert_eq!(fitted(&shape(&[4, 3]), None, Some(&dims), true), shape(&[1, 4, 3]));
        assert_eq!(fitted(&shape(&[2, 4, 3]), None, Some(&dims), true), shape(&[2, 4, 3]));
        assert_eq!(fitted(&shape(&[2, 3]), Some(2), Some(&shape(&[3])), true), shape(&[2, 3]));
    }
}
