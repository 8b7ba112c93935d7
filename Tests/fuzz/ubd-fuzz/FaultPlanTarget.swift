@testable import Targets

/// A plan of faults: as text, which `ubd` and a worker read; and as a block of a control file, which a worker reads that has no memory to
/// allocate. The block's sum is made right where the input wants, since no fuzzer finds one. Every rule that is taken is sound, can be
/// written as text, and is the same when it is read from that.
func testFaultPlan(_ input: [UInt8]) {
    guard let first = input.first else { return }
    let rest = input.dropFirst()
    if first & 1 == 0 {
        guard let text = String(validating: rest, as: UTF8.self) else { return }
        guard let rules = try? FaultPlan.rules(text) else { return }
        require(rules.count <= FaultPlan.mostRules, "\(rules.count) rules")
        checkRules(rules)
        var plan = FaultPlan()
        plan.rules = rules
        require((try? FaultPlan.rules(plan.text)) == rules, "another plan when it is read again: \(plan.text)")
        let words = FaultControl.encode(plan, sequence: 1, generation: 2)
        words.withUnsafeBufferPointer {
            require(FaultControl.plan($0.baseAddress!)?.rules == rules, "another plan as a block: \(plan.text)")
        }
        return
    }
    var words = [UInt64](repeating: 0, count: FaultControl.words)
    words.withUnsafeMutableBytes { memory in
        for (place, byte) in rest.prefix(memory.count).enumerated() { memory[place] = byte }
    }
    if first & 2 != 0 { words[FaultControl.PlanWord.magic] = FaultControl.magic }
    words.withUnsafeMutableBufferPointer { words in
        let block = UnsafePointer(words.baseAddress!)
        if first & 4 != 0 { words[FaultControl.PlanWord.sum] = FaultControl.sum(block) }
        guard let plan = FaultControl.plan(block) else { return }
        require(words[FaultControl.PlanWord.sum] == FaultControl.sum(block), "a plan with a wrong sum")
        require(plan.rules.count <= FaultPlan.mostRules, "\(plan.rules.count) rules")
        checkRules(plan.rules)
    }
}

private func checkRules(_ rules: [FaultRule]) {
    require(
        rules.reduce(0) { $0 + $1.healed } <= FaultRule.mostHealed,
        "\(rules.reduce(0) { $0 + $1.healed }) sectors to heal")
    for rule in rules {
        require(rule.isSound, "\(rule)")
        require(rule.rate > 0 && rule.rate <= FaultRule.always && rule.first <= rule.last, "\(rule)")
        require(rule.high <= FaultRule.longestDelay, "\(rule)")
        // Numbers beyond these are for whoever writes the block, not for people.
        let most = UInt64(Int64.max)
        guard rule.isAnywhere || rule.last <= most, rule.after <= most, rule.times <= most else { continue }
        require((try? FaultRule(text: Substring(rule.description))) == rule, "another rule: \(rule)")
    }
}
