//! What leaves when memory is short, and what does not, whatever there is.

use proptest::prelude::*;

use super::*;

const CPU: Device = Device::Cpu;
const GPU: Device = Device::Cuda(0);

/// An idle model on demand of so many bytes, not used for so many seconds.
fn model(key: u32, bytes: u64, unused: u64) -> Candidate<u32> {
    Candidate {
        key,
        residency: Residency::OnDemand,
        bytes: Footprint::on(CPU, bytes),
        reload: Duration::from_secs(1),
        unused: Some(Duration::from_secs(unused)),
    }
}

fn evicted(bytes: u64, candidates: &[Candidate<u32>]) -> Verdict<u32> {
    evict(&Footprint::on(CPU, bytes), Residency::OnDemand, candidates)
}

#[test]
fn of_equal_models_the_least_recently_used_leaves() {
    let models = [model(1, 10, 5), model(2, 10, 50), model(3, 10, 20)];
    assert_eq!(evicted(10, &models), Verdict::Evict(vec![2]));
    assert_eq!(evicted(11, &models), Verdict::Evict(vec![2, 3]));
    assert_eq!(evicted(31, &models), Verdict::Never);
}

#[test]
fn what_is_paged_out_goes_only_if_nothing_else_is_enough_or_it_holds_too_much() {
    let (there, paged) = ([model(1, 90, 5), model(2, 90, 6)], [model(3, 2, 500), model(4, 2, 50)]);
    let evicted = |bytes, limit| {
        let lacking = Footprint::on(CPU, bytes);
        evict_with_paged((&lacking, Residency::OnDemand), &there, &paged, |_| limit)
    };
    assert_eq!(evicted(2, 200), Verdict::Evict(vec![2]), "however long it was not used");
    assert_eq!(evicted(182, 200), Verdict::Evict(vec![3, 2, 1]));
    assert_eq!(evicted(185, 200), Verdict::Never);
    assert_eq!(evicted(2, 7), Verdict::Evict(vec![3]), "half is less than they hold");
}

#[test]
fn what_is_dear_to_load_stays_and_what_frees_much_leaves() {
    let dear = Candidate { reload: Duration::from_secs(100), ..model(1, 10, 10) };
    assert_eq!(evicted(10, &[dear, model(2, 10, 5)]), Verdict::Evict(vec![2]));
    assert_eq!(evicted(40, &[model(1, 10, 9), model(2, 40, 8), model(3, 30, 7)]), Verdict::Evict(vec![2]));
}

#[test]
fn what_has_requests_is_waited_for_and_never_leaves() {
    let busy = Candidate { unused: None, ..model(1, 10, 0) };
    assert_eq!(evicted(10, std::slice::from_ref(&busy)), Verdict::Wait);
    assert_eq!(evicted(10, &[busy.clone(), model(2, 10, 1)]), Verdict::Evict(vec![2]));
    assert_eq!(evicted(11, &[busy]), Verdict::Never);
}

#[test]
fn residents_leave_for_pinned_models_only_and_after_those_on_demand() {
    let resident = Candidate { residency: Residency::Resident, ..model(1, 10, 1000) };
    let pinned = Candidate { residency: Residency::Pinned, ..model(2, 10, 1000) };
    let models = [resident, pinned, model(3, 10, 1)];
    let by = |by, bytes| evict(&Footprint::on(CPU, bytes), by, &models);
    assert_eq!(by(Residency::Pinned, 10), Verdict::Evict(vec![3]));
    assert_eq!(by(Residency::Pinned, 20), Verdict::Evict(vec![3, 1]));
    assert_eq!(by(Residency::Pinned, 21), Verdict::Never);
    assert_eq!(by(Residency::Resident, 20), Verdict::Never);
    assert_eq!(by(Residency::OnDemand, 10), Verdict::Evict(vec![3]));
}

fn residency() -> impl Strategy<Value = Residency> {
    prop_oneof![Just(Residency::OnDemand), Just(Residency::Resident), Just(Residency::Pinned)]
}

fn footprint(max: u64) -> impl Strategy<Value = Footprint> {
    (0..max, 0..max).prop_map(|(cpu, gpu)| {
        let each = [(CPU, cpu), (GPU, gpu)].into_iter().filter(|(_, bytes)| *bytes > 0);
        Footprint { bytes: each.collect() }
    })
}

fn candidates() -> impl Strategy<Value = Vec<Candidate<u32>>> {
    let any = (residency(), footprint(50), 0..1000_u64, proptest::option::of(0..1000_u64));
    proptest::collection::vec(any, 0..12).prop_map(|models| {
        let model = |(key, (residency, bytes, reload, unused)): (usize, (_, _, _, Option<u64>))| Candidate {
            key: key as u32,
            residency,
            bytes,
            reload: Duration::from_millis(reload),
            unused: unused.map(Duration::from_secs),
        };
        models.into_iter().enumerate().map(model).collect()
    })
}

proptest! {
    /// Only idle models leave that may; together they are enough, and none of them leaves needlessly.
    #[test]
    fn what_leaves_is_enough_and_no_more(models in candidates(), lacking in footprint(120), by in residency()) {
        let find = |key: &u32| models.iter().find(|model| model.key == *key).expect("it is one of them");
        match evict(&lacking, by, &models) {
            Verdict::Evict(keys) => {
                prop_assert!(keys.iter().all(|key| find(key).unused.is_some() && by.displaces(find(key).residency)));
                prop_assert!(covers(&lacking, keys.iter().map(find)));
                for without in &keys {
                    prop_assert!(!covers(&lacking, keys.iter().filter(|key| *key != without).map(find)));
                }
            }
            verdict => {
                let may = |model: &&Candidate<u32>| by.displaces(model.residency);
                prop_assert!(!covers(&lacking, models.iter().filter(may).filter(|model| model.unused.is_some())));
                let could = covers(&lacking, models.iter().filter(may));
                prop_assert_eq!(verdict, if could { Verdict::Wait } else { Verdict::Never });
            }
        }
    }

    /// Among models that differ in nothing else, whoever stays was used later than whoever leaves.
    #[test]
    fn equal_models_leave_in_the_order_of_their_use(unused in proptest::collection::vec(0..10_000_u64, 1..20), count in 1..20_u64) {
        let models: Vec<_> = unused.iter().enumerate().map(|(key, unused)| model(key as u32, 10, *unused)).collect();
        if let Verdict::Evict(keys) = evicted(10 * count, &models) {
            prop_assert_eq!(keys.len() as u64, count);
            let of = |key: &u32| unused[*key as usize];
            let latest = keys.iter().map(of).min().unwrap_or_default();
            let stay = (0..models.len() as u32).filter(|key| !keys.contains(key));
            prop_assert!(stay.into_iter().all(|key| of(&key) <= latest));
        } else {
            prop_assert!(count as usize > models.len());
        }
    }
}
