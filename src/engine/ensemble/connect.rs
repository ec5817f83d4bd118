//! Fits an ensemble's configuration to its members as they are now.

use std::sync::Arc;

use super::graph::{Fault, Member, Plan};
use crate::error::Result;
use crate::model::schema::ModelTransactionPolicy;
use crate::model::{Ensemble, EnsembleStep, ModelConfig};
use crate::repository::{Mistake, Mistakes, Positions, nearest};

/// Completes `config` with what only its members know, and gives the plan of its graph; `positions` are the
/// configuration's, and `find` gives a member that is ready.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if members are not there, or with everything in which they do not fit.
pub(in crate::engine) fn connect(
    config: &mut ModelConfig,
    ensemble: &Ensemble,
    positions: &Positions,
    find: impl Fn(&EnsembleStep) -> Option<Member>,
) -> Result<Plan> {
    let members: Vec<Option<Member>> = ensemble.steps.iter().map(&find).collect();
    if let Some(first) = members.iter().position(Option::is_none) {
        let absent = ensemble.steps.iter().zip(&members).filter(|(_, member)| member.is_none());
        let mut missing: Vec<String> = absent.map(|(step, _)| shown(step)).collect();
        missing.sort();
        missing.dedup();
        let message = format!(
            "ensemble '{}' contains models that are not available or ambiguous: {}",
            config.name,
            missing.join(", ")
        );
        let key = format!("ensemble_scheduling.step[{first}].model_name");
        return Err(Mistakes::from(positions.mistake(key, message)).into());
    }
    let members: Vec<Member> = members.into_iter().flatten().collect();
    let plan = Plan::new(config, ensemble, &members).map_err(|faults| mistakes(faults, positions))?;
    complete(config, ensemble, &members, plan.decoupled);
    Ok(plan)
}

/// The mistakes that faults are, each at its place.
fn mistakes(faults: Vec<Fault>, positions: &Positions) -> Mistakes {
    let mut mistakes = Mistakes::default();
    for Fault { key, message, candidates } in faults {
        let meant = key
            .rsplit_once('[')
            .and_then(|(_, name)| nearest(name.trim_end_matches(']'), candidates.iter().map(String::as_str)));
        mistakes.push(Mistake { suggestion: meant, ..positions.mistake(key, message) });
    }
    mistakes.sort();
    mistakes
}

/// A member as messages name it.
fn shown(step: &EnsembleStep) -> String {
    match step.version {
        None => step.model.clone(),
        Some(version) => format!("{} version {version}", step.model),
    }
}

/// Whether there may be any number of responses is the members' to say, and so are labels that the ensemble has not.
fn complete(config: &mut ModelConfig, ensemble: &Ensemble, members: &[Member], decoupled: bool) {
    if config.decoupled != decoupled {
        config.decoupled = decoupled;
        let schema = Arc::make_mut(&mut config.schema);
        schema.model_transaction_policy = Some(ModelTransactionPolicy { decoupled });
    }
    for output in config.outputs.iter_mut().filter(|output| output.labels.is_empty()) {
        let of_member = ensemble.steps.iter().zip(members).find_map(|(step, member)| {
            let (name, _) = step.outputs.iter().find(|(_, tensor)| **tensor == *output.name)?;
            member.config.outputs.iter().find(|spec| *spec.name == **name)
        });
        if let Some(spec) = of_member {
            output.labels = spec.labels.clone();
        }
    }
}
