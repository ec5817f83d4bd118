//! What `forward` is known to write to.

use super::*;

/// Whether a model with weight `w` and these methods is taken to write to its inputs and to its state.
fn effects(source: &str) -> (bool, bool) {
    let script = Script::new(source).parameter("w", floats(&[1], &[1.0]));
    let bench = Bench::new(&script, &[], &[]);
    let module = Module::load(&bench.folder.path().join("model.pt"), Device::Cpu).expect("it loads");
    let effects = module.effects().expect("the graph can be analysed");
    (effects.inputs, effects.state)
}

#[test]
fn what_forward_writes_to_is_known() {
    let body = |lines: &str| format!("def forward(self, x):\n{lines}    return x + self.w\n");
    assert_eq!(effects(&body("")), (false, false), "nothing");
    assert_eq!(effects(&body("    y = x + 1\n    y.add_(1)\n")), (false, false), "something new");
    assert_eq!(effects(&body("    x.add_(1)\n")), (true, false), "an input");
    assert_eq!(effects(&body("    x.view(-1)[0].add_(1)\n")), (true, false), "a view of an input");
    assert!(effects(&body("    self.w.add_(1)\n")).1, "a weight");
    assert!(effects(&body("    self.w.view(-1).add_(1)\n")).1, "a view of a weight");
    assert_eq!(effects(&body("    [x, self.w][1].add_(1)\n")), (true, true), "an element of a list of both");
    assert!(effects(&body("    for y in [self.w, self.w]:\n        y.add_(1)\n")).1, "a weight in a list");
    assert!(effects(&body("    y = x if bool(x.sum() > 0) else self.w\n    y.add_(1)\n")).1, "one or the other");
    let new = "    out: List[Tensor] = []\n    for i in range(3):\n        out.append(x)\n";
    assert_eq!(effects(&body(new)), (false, false), "a new list");
}

#[test]
fn what_runs_in_training_only_is_no_effect() {
    let counted = "    if self.training:\n        self.w.add_(1)\n    return x + self.w\n";
    assert_eq!(effects(&format!("def forward(self, x):\n{counted}")), (false, false));
    let asked =
        "    training = self.training and bool(x.sum() > 0)\n    if training:\n        self.w.add_(1)\n    return x\n";
    assert_eq!(effects(&format!("def forward(self, x):\n{asked}")), (false, false));
    let otherwise = "    if not self.training:\n        self.w.add_(1)\n    return x + self.w\n";
    assert!(effects(&format!("def forward(self, x):\n{otherwise}")).1);
    let set = "    self.training = True\n    if self.training:\n        self.w.add_(1)\n    return x + self.w\n";
    assert!(effects(&format!("def forward(self, x):\n{set}")).1);
}

#[test]
fn a_write_to_an_element_of_a_dictionary_input_is_known() {
    let source = |line: &str| format!("def forward(self, x: Dict[str, Tensor]):\n{line}    return x[\"a\"] + self.w\n");
    assert_eq!(effects(&source("")), (false, false));
    assert_eq!(effects(&source("    x[\"a\"].add_(1)\n")), (true, false));
    assert_eq!(effects(&source("    x[\"b\"] = x[\"a\"]\n")), (true, false));
}

#[test]
fn a_write_to_an_element_of_a_list_that_the_module_holds_is_known() {
    let held = |source: &str| {
        let mut module = Module::new("Model").expect("libtorch is there");
        let weight = floats(&[1], &[1.0]);
        module.register_list("cache", &Handle::over(FP32, &weight.shape, &weight.data).expect("it fits")).expect("new");
        module.define(source).expect("it compiles");
        let effects = module.effects().expect("the graph can be analysed");
        (effects.inputs, effects.state)
    };
    assert_eq!(held("def forward(self, x):\n    return x + self.cache[0]\n"), (false, false));
    assert!(held("def forward(self, x):\n    self.cache[0].add_(x)\n    return self.cache[0]\n").1);
    assert!(held("def forward(self, x):\n    self.cache.append(x)\n    return x\n").1);
}
