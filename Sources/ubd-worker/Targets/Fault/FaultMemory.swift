import Glibc
import SystemCalls
import Targets

/// What target fault remembers on its queue, in memory that the queue holds: the control file's blocks, the rules, the log, times
/// for the kernel, requests that wait, and which bad sectors were healed.
struct FaultMemory: @unchecked Sendable {
    // Unchecked: it belongs to the one queue.
    /// The block of the plan, as it was read last.
    let plan: UnsafeMutablePointer<UInt64>
    /// The block of the state, which the worker counts in and writes (`FaultControl.State`).
    let state: UnsafeMutablePointer<UInt64>
    /// The log, as it is in the file.
    let log: UnsafeMutablePointer<UInt64>
    /// The rules in force, and room for the next ones.
    let rules: UnsafeMutablePointer<FaultRule>
    let nextRules: UnsafeMutablePointer<FaultRule>
    /// struct __kernel_timespec: one for each tag, then the queue's own.
    private let times: UnsafeMutablePointer<Int64>
    /// Tags that wait, a ring buffer.
    private let waiting: UnsafeMutablePointer<UInt16>
    private let depth: Int
    /// A bit for each sector of the rules that heal.
    private let healed: UnsafeMutablePointer<UInt64>
    private var firstWaiting = 0
    private(set) var waitingCount = 0

    private static let healedWords = Int(FaultRule.mostHealed / 64)

    /// Bytes of a block of the plan, of one of the state, and of the log.
    private static let fileBytes = FaultControl.bytes

    static func bytes(depth: Int) -> Int {
        let rules = 2 * FaultPlan.mostRules * MemoryLayout<FaultRule>.stride
        let sum = fileBytes + rules + (depth + 1) * 16 + depth * 8 + healedWords * 8
        return (sum + 4095) / 4096 * 4096
    }

    /// `base`: `bytes` of zeros at the start of a page.
    init(_ base: UnsafeMutableRawPointer, depth: Int) {
        func words(_ place: UnsafeMutableRawPointer) -> UnsafeMutablePointer<UInt64> {
            place.assumingMemoryBound(to: UInt64.self)
        }
        plan = words(base + FaultControl.planOffset)
        state = words(base + FaultControl.stateOffset)
        log = words(base + FaultControl.logOffset)
        healed = words(base + FaultMemory.fileBytes)
        var next = base + FaultMemory.fileBytes + FaultMemory.healedWords * 8
        times = next.assumingMemoryBound(to: Int64.self)
        next += (depth + 1) * 16
        waiting = next.assumingMemoryBound(to: UInt16.self)
        next += depth * 8
        rules = next.bindMemory(to: FaultRule.self, capacity: 2 * FaultPlan.mostRules)
        nextRules = rules + FaultPlan.mostRules
        self.depth = depth
    }

    /// The address of a time for the kernel. `tag`: the depth for the queue's own.
    func time(_ tag: Int, microseconds: UInt64) -> UInt64 {
        times[2 * tag] = Int64(clamping: microseconds / 1_000_000)
        times[2 * tag + 1] = Int64(clamping: microseconds % 1_000_000 * 1000)
        return UInt64(UInt(bitPattern: times + 2 * tag))
    }

    // MARK: Requests that wait

    /// Each tag waits at most once, so there is room.
    mutating func wait(_ tag: UInt16) {
        waiting[(firstWaiting + waitingCount) % depth] = tag
        waitingCount += 1
    }

    /// The one that has waited longest; there must be one.
    mutating func takeWaiting() -> UInt16 {
        let tag = waiting[firstWaiting]
        firstWaiting = (firstWaiting + 1) % depth
        waitingCount -= 1
        return tag
    }

    // MARK: Healed sectors

    /// The first bit of a rule's sectors: those of the rules before it come first.
    private func bits(of rule: Int) -> UInt64 {
        (0..<rule).reduce(0) { $0 + rules[$1].healed }
    }

    /// Whether a sector of the range is one of the rule's and was not healed.
    func isBad(_ rule: Int, _ first: UInt64, _ last: UInt64) -> Bool {
        let bits = bits(of: rule)
        var sector = max(first, rules[rule].first)
        let end = min(last, rules[rule].last)
        while sector <= end {
            let bit = bits + (sector - rules[rule].first)
            if healed[Int(bit / 64)] >> (bit % 64) & 1 == 0 { return true }
            sector += 1
        }
        return false
    }

    /// The range was written.
    func heal(_ rule: Int, _ first: UInt64, _ last: UInt64) {
        let bits = bits(of: rule)
        var sector = max(first, rules[rule].first)
        let end = min(last, rules[rule].last)
        while sector <= end {
            let bit = bits + (sector - rules[rule].first)
            healed[Int(bit / 64)] |= 1 << (bit % 64)
            sector += 1
        }
    }

    /// All sectors are bad again.
    func forgetHealed() { memset(healed, 0, FaultMemory.healedWords * 8) }
}
