import Glibc
import KernelABI
import Targets

// Which rule strikes a request. Nothing here depends on time: the same seed and the same requests in the same order are struck alike.
extension FaultTarget {
    /// Asks the rules in order. Delays add up; the first rule that does anything else decides, and those behind it are not asked.
    /// Returns microseconds.
    mutating func choose(
        _ tag: UInt16, _ kind: FaultRule.Operations, _ descriptor: UblkIODescriptor,
        on queue: inout Queue<FaultTarget>
    ) -> UInt64 {
        var delay: UInt64 = 0
        let request = queue.requests + Int(tag)
        for index in 0..<ruleCount {
            let rule = memory.rules[index]
            let waits = rule.action == .delay || rule.action == .exponential
            guard waits || request.pointee.action == nil, isAbout(index, rule, kind, descriptor) else { continue }
            memory.state[FaultControl.State.matches + index] &+= 1
            let match = memory.state[FaultControl.State.matches + index]
            let hits = memory.state[FaultControl.State.hits + index]
            guard match > rule.after, rule.times == 0 || hits < rule.times,
                rule.rate == FaultRule.always
                    || FaultDice.roll(seed, UInt64(index), match) % UInt64(FaultRule.always) < UInt64(rule.rate)
            else { continue }
            memory.state[FaultControl.State.hits + index] &+= 1
            count(FaultControl.State.struck + Int(rule.action.rawValue) - 1)
            var detail = rule.low
            if waits {
                let time = time(rule, index, match)
                delay += time
                detail = UInt32(clamping: time)
            } else {
                request.pointee.action = rule.action
                request.pointee.failure = rule.failure
                request.pointee.acknowledged = rule.acknowledged
                request.pointee.low = rule.low
                request.pointee.rule = UInt64(index)
                request.pointee.match = match
            }
            log(kind, rule, index, descriptor, detail: detail, match: match)
        }
        return delay
    }

    private func isAbout(
        _ index: Int, _ rule: FaultRule, _ kind: FaultRule.Operations, _ descriptor: UblkIODescriptor
    ) -> Bool {
        guard rule.operations.contains(kind) else { return false }
        // A flush is about the whole disk.
        if kind == .flush { return rule.isAnywhere }
        guard descriptor.sectors > 0 else { return false }
        let last = descriptor.startSector &+ UInt64(descriptor.sectors) &- 1
        guard descriptor.startSector <= rule.last, last >= rule.first else { return false }
        // A write that is no longer than what is left of it is not torn.
        if rule.action == .torn { return descriptor.sectors > rule.low }
        return !rule.heals || memory.isBad(index, descriptor.startSector, last)
    }

    /// Microseconds.
    private func time(_ rule: FaultRule, _ index: Int, _ match: UInt64) -> UInt64 {
        let roll = FaultDice.roll(seed, 32 + UInt64(index), match)
        if rule.action == .delay { return UInt64(rule.low) + roll % UInt64(rule.high - rule.low + 1) }
        // The inverse of the distribution, at a number above 0 and at most 1; none in a million million is longer than this.
        let even = Double(roll >> 11 &+ 1) / 9_007_199_254_740_992
        return UInt64(min(-Glibc.log(even), 20) * Double(rule.low))
    }

    /// Sectors were written: rules that heal forget them.
    func heal(_ first: UInt64, _ last: UInt64) {
        for index in 0..<ruleCount where memory.rules[index].heals { memory.heal(index, first, last) }
    }

    /// Writes a record of the log. A power cut has no rule.
    mutating func log(
        _ kind: FaultRule.Operations, _ rule: FaultRule?, _ index: Int, _ descriptor: UblkIODescriptor?,
        detail: UInt32, match: UInt64
    ) {
        typealias Record = FaultControl.Record
        let number = memory.state[FaultControl.State.logged]
        let words = memory.log + Int(number % UInt64(FaultControl.records)) * FaultControl.recordWords
        let action = UInt64(rule?.action.rawValue ?? 0)
        let failure = UInt64(rule?.failure.rawValue ?? 0)
        words[Record.number] = number &+ 1
        words[Record.what] = UInt64(kind.rawValue) | action << 8 | UInt64(index) << 16 | failure << 24
        words[Record.sector] = descriptor?.startSector ?? 0
        words[Record.sectors] = UInt64(descriptor?.sectors ?? 0) | UInt64(detail) << 32
        words[Record.request] = memory.state[FaultControl.State.requests]
        words[Record.match] = match
        words[6] = 0
        words[7] = 0
        memory.state[FaultControl.State.logged] = number &+ 1
        turn.isChanged = true
    }
}
