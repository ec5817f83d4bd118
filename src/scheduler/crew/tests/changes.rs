//! Instances that come and go while a version serves.

use super::*;

#[test]
fn instances_are_added_and_dismissed_while_they_serve() {
    let group = |count| vec![Instances::new("g", Device::Cpu, count)];
    let metrics = Metrics::new();
    let stage = Stage::new(Scene { scheduler: queue(1), metrics: metrics.clone(), ..Scene::default() });
    let running = stage.ask(None).expect("accepted");
    stage.begun();
    stage.crew.resize(&group(3)).expect("two more start");
    let others = [stage.ask(None).expect("accepted"), stage.ask(None).expect("accepted")];
    let (second, third) = (stage.begun().0, stage.begun().0);
    assert!(second != third && stage.crew.len() == 3, "three execute at the same time");
    assert!(metrics.render().contains("nereid_instances{model=\"m\",version=\"1\"} 3"));

    stage.crew.resize(&group(1)).expect("two are dismissed");
    assert_eq!(stage.crew.len(), 1);
    let waits = stage.ask(None).expect("accepted");
    (0..4).for_each(|_| stage.order(Order::Answer));
    outcome(running).expect("an instance that is dismissed ends after its batch");
    others.into_iter().for_each(|asked| outcome(asked).expect("answered"));
    outcome(waits).expect("answered by who is left");
    until(|| {
        stage.crew.state.lock().forget_ended();
        stage.crew.state.lock().members.len() == 1
    });
    stage.crew.retire();
    assert!(metrics.render().contains("nereid_instances{model=\"m\",version=\"1\"} 0"), "{}", metrics.render());
}

#[test]
fn an_idle_instance_that_is_dismissed_ends_at_once_and_its_number_is_free() {
    let group = |count| vec![Instances::new("g", Device::Cpu, count)];
    let stage = Stage::new(Scene::default());
    for _ in 0..20 {
        stage.crew.resize(&group(3)).expect("two more");
        stage.crew.resize(&group(1)).expect("two less");
        until(|| {
            stage.crew.state.lock().forget_ended();
            stage.crew.state.lock().members.len() == 1
        });
    }
    assert!(stage.crew.state.lock().members.iter().all(|member| member.index < 3));
    stage.order(Order::Answer);
    outcome(stage.ask(None).expect("accepted")).expect("answered");
    stage.crew.retire();
}

#[test]
fn an_added_instance_takes_sequences_and_its_number_is_that_of_no_other() {
    let group = |count| vec![Instances::new("g", Device::Cpu, count)];
    let stage = Stage::new(Scene { scheduler: sequences(), ..Scene::default() });
    (0..4).for_each(|_| stage.order(Order::Answer));
    outcome(stage.go_on(1, true)).expect("answered");
    stage.crew.resize(&group(2)).expect("another one starts");
    outcome(stage.go_on(2, true)).expect("answered by the other one, as each has one sequence at a time");
    stage.crew.resize(&group(1)).expect("the last is dismissed");
    stage.crew.resize(&group(2)).expect("and another one starts while that still has a sequence");
    outcome(stage.go_on(3, true)).expect("answered by the new one");
    outcome(stage.go_on(2, false)).expect("answered by the one that was dismissed");
    stage.crew.retire();
}

#[test]
fn when_a_dismissed_instance_is_lost_who_waits_for_it_is_told() {
    let group = |count| vec![Instances::new("g", Device::Cpu, count)];
    let stage = Stage::new(Scene { scheduler: sequences(), groups: group(2), ..Scene::default() });
    stage.order(Order::Answer);
    outcome(stage.go_on(1, true)).expect("answered");
    let (hung, waits) = (stage.go_on(2, true), stage.go_on(2, false));
    let end = stage.hang();
    stage.crew.resize(&group(1)).expect("the one that hangs is dismissed");
    stage.time_passes();
    assert_eq!(outcome(hung).expect_err("it hangs").kind(), Kind::Backend);
    assert_eq!(outcome(waits).expect_err("nobody serves it").kind(), Kind::Backend);
    stage.crew.retire();
    drop(end);
}

#[test]
fn a_change_that_fails_changes_nothing() {
    let stage = Stage::new(Scene::default());
    stage.puppet.broken.store(true, Ordering::SeqCst);
    let error = stage.crew.resize(&[Instances::new("g", Device::Cpu, 2)]).expect_err("the second cannot be made");
    assert_eq!(error.message(), "broken on purpose");
    assert_eq!(stage.crew.len(), 1);
    stage.order(Order::Answer);
    outcome(stage.ask(None).expect("accepted")).expect("answered");
    stage.crew.retire();
}

#[test]
fn a_change_of_which_an_instance_hangs_changes_nothing() {
    let stage = Stage::new(Scene { warmup: warmup(), orders: vec![Order::Answer], ..Scene::default() });
    stage.begun();
    let crew = &stage.crew;
    std::thread::scope(|scope| {
        let resize = scope.spawn(|| crew.resize(&[Instances::new("other", Device::Cpu, 1)]));
        stage.begun();
        let _end = stage.hang();
        stage.time_passes();
        let error = resize.join().expect("no panic").expect_err("the other one hangs");
        assert!(error.message().starts_with("the execution did not end within 5 s"), "{error}");
    });
    assert_eq!((stage.crew.len(), stage.crew.threads(), stage.puppet.made.load(Ordering::SeqCst)), (1, 1, 2));
    stage.order(Order::Answer);
    outcome(stage.ask(None).expect("accepted")).expect("answered");
    stage.crew.retire();
}

#[test]
fn an_instance_that_hangs_while_a_change_waits_for_another_is_none_that_has_served() {
    let queue = Arc::new(Queue::new(settings(1), Arc::default()));
    let warmup = [warmup(), warmup()].concat();
    let orders = vec![Order::Answer, Order::Answer];
    let stage = Stage::new(Scene { scheduler: queue.clone(), warmup, orders, ..Scene::default() });
    (0..2).for_each(|_| _ = stage.begun());
    let crew = &stage.crew;
    // Nobody hears what becomes of them before the looks.
    let mut change = crew.change(&[Instances::new("g", Device::Cpu, 3)]);
    (0..2).for_each(|_| _ = stage.begun());
    // Its end would take the last order.
    let _end = stage.hang();
    let now = Instant::now();
    until(|| Instant::now() > now);
    stage.order(Order::Answer);
    stage.begun();
    // The other one's first execution is too long by then, and this one's second is not.
    (0..2).for_each(|_| _ = crew.look(now + LIMIT, LIMIT));
    let members = crew.state.lock().members.len();
    stage.order(Order::Answer);
    let changed = change.wait();
    drop(change);
    assert_eq!(members, 3, "who waits decides what becomes of it");
    let error = changed.expect_err("one hangs");
    assert!(error.message().starts_with("the execution did not end within 5 s"), "{error}");
    assert_eq!((crew.len(), queue.staff()), (1, 1));
    stage.order(Order::Answer);
    outcome(stage.ask(None).expect("accepted")).expect("answered");
    stage.crew.retire();
}

#[test]
fn instances_on_their_way_do_not_count_when_those_that_serve_are_lost() {
    let orders = vec![Order::Answer];
    let stage = Stage::new(Scene { warmup: warmup(), orders, lost_max: 0, ..Scene::default() });
    stage.begun();
    let mut change = stage.crew.change(&[Instances::new("g", Device::Cpu, 2)]);
    stage.begun();
    let _new = stage.hang();
    let hung = stage.ask(None).expect("accepted");
    stage.begun();
    let _old = stage.hang();
    stage.time_passes();
    assert_eq!(outcome(hung).expect_err("given up").kind(), Kind::Backend);
    let reason = stage.failed.try_recv().expect("it is told");
    assert!(reason.message().starts_with("1 instances were given up"), "{reason}");
    assert!(change.wait().is_err());
    drop(change);
    assert_eq!((stage.crew.lost(), stage.ask(None).err()), (Some(reason.clone()), Some(reason)));
    assert!(stage.crew.is_empty() && stage.failed.try_recv().is_err(), "told once");
    stage.crew.retire();
}

#[test]
fn a_change_fails_if_none_of_those_that_served_is_left() {
    let scheduler = Arc::new(Queue::new(settings(1), Arc::default()));
    let stage = Stage::new(Scene { scheduler, lost_max: 0, ..Scene::default() });
    let answered = stage.ask(None).expect("accepted");
    let (old, _) = stage.begun();
    stage.order(Order::Answer);
    outcome(answered).expect("answered");
    let mut change = stage.crew.change(&[Instances::new("g", Device::Cpu, 2)]);
    runtime().block_on(change.ready()).expect("it is ready");
    let mut kept = Vec::new();
    for _ in 0..2 {
        let asked = stage.ask(None).expect("accepted");
        kept.push((stage.begun().0, asked, stage.hang()));
    }
    let at = kept.iter().position(|(index, ..)| *index != old).expect("the new one serves, too");
    let (_, answered, end) = kept.remove(at);
    drop(end);
    outcome(answered).expect("it comes back in time");
    stage.time_passes();
    let reason = stage.failed.recv().expect("it is told");
    assert_eq!(change.check(), Err(reason));
    drop(change);
    stage.crew.retire();
}

#[test]
fn a_change_that_is_given_up_leaves_nothing_behind() {
    let group = |count| vec![Instances::new("g", Device::Cpu, count)];
    let (metrics, orders) = (Metrics::new(), vec![Order::Answer]);
    let scene = Scene { scheduler: queue(1), warmup: warmup(), orders, metrics: metrics.clone(), ..Scene::default() };
    let stage = Stage::new(scene);
    let (first, _) = stage.begun();
    let change = stage.crew.change(&group(3));
    (0..2).for_each(|_| _ = stage.begun());
    // First, so that nobody but the other one can take the next order.
    stage.order(Order::Answer);
    let end = stage.hang();
    let both = [stage.ask(None).expect("accepted"), stage.ask(None).expect("accepted")];
    assert_ne!(stage.begun().0, stage.begun().0, "one of the new ones serves");
    let hang = change.undo();
    assert_eq!((hang.len(), stage.crew.len()), (1, 1));
    assert!(metrics.render().contains("nereid_instances{model=\"m\",version=\"1\"} 1"), "{}", metrics.render());
    (0..2).for_each(|_| stage.order(Order::Answer));
    both.into_iter().for_each(|asked| outcome(asked).expect("it ends after its batch"));
    until(|| stage.crew.threads() == 1);

    let again = stage.crew.change(&group(2));
    stage.begun();
    let never = stage.hang();
    let hangs = again.undo();
    drop(end);
    hang.into_iter().for_each(|thread| thread.join().expect("it ends when it comes back"));
    stage.order(Order::Answer);
    outcome(stage.ask(None).expect("accepted")).expect("answered");
    assert_eq!(stage.begun().0, first);
    stage.crew.retire();
    drop((never, hangs));
}

#[test]
fn a_crew_that_retires_does_not_wait_for_what_a_change_leaves_behind() {
    let stage = Stage::new(Scene { warmup: warmup(), orders: vec![Order::Answer], ..Scene::default() });
    stage.begun();
    let change = stage.crew.change(&[Instances::new("g", Device::Cpu, 2)]);
    stage.begun();
    let _end = stage.hang();
    std::thread::scope(|scope| {
        let retire = scope.spawn(|| stage.crew.retire());
        until(|| stage.crew.threads() == 1);
        change.undo();
        retire.join().expect("no panic");
    });
    assert_eq!(stage.crew.threads(), 0);
}

#[test]
fn an_instance_that_is_dismissed_before_it_is_ready_does_not_serve() {
    let groups = vec![Instances::new("g", Device::Cpu, 2)];
    let orders = vec![Order::Answer, Order::Answer];
    let stage = Stage::new(Scene { warmup: warmup(), orders, groups, scheduler: queue(1), ..Scene::default() });
    (0..2).for_each(|_| _ = stage.begun());
    let hung = stage.ask(None).expect("accepted");
    stage.begun();
    let _end = stage.hang();
    stage.time_passes();
    assert_eq!(outcome(hung).expect_err("given up").kind(), Kind::Backend);
    stage.begun();
    stage.crew.resize(&[Instances::new("g", Device::Cpu, 1)]).expect("the one that takes the other's place leaves");
    stage.order(Order::Answer);
    until(|| stage.crew.threads() == 1);
    stage.order(Order::Answer);
    outcome(stage.ask(None).expect("accepted")).expect("answered by who is left");
    stage.crew.retire();
}

/// A change to two other instances, which were ready and are lost before it is made; the one that was there goes on.
fn change_of_which_nobody_is_left() -> (Stage, Arc<Queue>, Change) {
    let queue = Arc::new(Queue::new(settings(1), Arc::default()));
    let stage = Stage::new(Scene { scheduler: queue.clone(), lost_max: 0, ..Scene::default() });
    let busy = stage.ask(None).expect("accepted");
    stage.begun();
    let end = stage.hang();
    let mut change = stage.crew.change(&[Instances::new("other", Device::Cpu, 2)]);
    runtime().block_on(change.ready()).expect("they are ready");
    change.check().expect("they serve");
    for left in [2, 1] {
        let fails = stage.ask(None).expect("accepted");
        stage.begun();
        stage.order(Order::Break);
        assert_eq!(outcome(fails).expect_err("told to").kind(), Kind::DeviceLost);
        until(|| stage.crew.threads() == left);
    }
    drop(end);
    outcome(busy).expect("it comes back in time");
    // For whoever asks next.
    stage.order(Order::Answer);
    (stage, queue, change)
}

#[test]
fn a_change_whose_instances_are_lost_before_it_is_made_fails() {
    let (stage, queue, change) = change_of_which_nobody_is_left();
    let error = change.check().expect_err("nobody of them is left");
    assert_eq!(error.message(), "an instance was lost before all were ready");
    assert!(change.undo().is_empty());
    assert_eq!((stage.crew.len(), queue.staff()), (1, 1));
    outcome(stage.ask(None).expect("accepted")).expect("answered");
    stage.crew.retire();
}

#[test]
fn a_change_that_would_leave_nobody_dismisses_nobody() {
    let (stage, queue, change) = change_of_which_nobody_is_left();
    change.make();
    assert_eq!((stage.crew.len(), queue.staff()), (1, 1));
    outcome(stage.ask(None).expect("accepted")).expect("answered");
    stage.crew.retire();
    assert!(stage.failed.try_recv().is_err());
}

#[test]
fn a_change_is_not_made_before_who_takes_the_place_of_a_lost_instance_is_ready() {
    let orders = vec![Order::Answer];
    let stage = Stage::new(Scene { warmup: warmup(), orders, scheduler: queue(1), ..Scene::default() });
    stage.begun();
    let busy = stage.ask(None).expect("accepted");
    stage.begun();
    let end = stage.hang();
    let mut change = stage.crew.change(&[Instances::new("other", Device::Cpu, 1)]);
    stage.begun();
    stage.order(Order::Answer);
    runtime().block_on(change.ready()).expect("it is ready");
    change.check().expect("it serves");
    let fails = stage.ask(None).expect("accepted");
    stage.begun();
    stage.order(Order::Break);
    assert_eq!(outcome(fails).expect_err("told to").kind(), Kind::DeviceLost);
    stage.begun();
    assert!(change.check().is_err(), "the other one is not ready");
    stage.order(Order::Answer);
    until(|| change.check().is_ok());
    change.make();
    drop(end);
    outcome(busy).expect("it comes back in time");
    until(|| stage.crew.threads() == 1);
    stage.order(Order::Answer);
    outcome(stage.ask(None).expect("accepted")).expect("answered");
    stage.crew.retire();
}

#[test]
fn another_group_replaces_the_instances() {
    let stage = Stage::new(Scene::default());
    stage.crew.resize(&[Instances::new("other", Device::Cpu, 1)]).expect("it starts");
    stage.order(Order::Answer);
    outcome(stage.ask(None).expect("accepted")).expect("answered");
    assert_eq!((stage.crew.len(), stage.puppet.made.load(Ordering::SeqCst)), (1, 2));
    stage.crew.retire();
}
