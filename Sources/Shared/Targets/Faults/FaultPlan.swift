/// What a fault device does: its rules, its seed, and when its power is cut. `ubd` writes it into the control file; the worker
/// reads it from there, or makes it from the options of the device.
public struct FaultPlan: Equatable, Sendable {
    /// UTF-8 bytes of all rules.
    public static let longestText = 2048
    /// Rules of one plan.
    public static let mostRules = 16

    public var rules: [FaultRule] = []
    public var seed: UInt64 = 0
    /// Writes after which the power is cut; 0: never.
    public var cutAfter: UInt64 = 0
    /// Commands to cut the power or to give it back so far: twice their number, and 1 if the power is off by the last one.
    public var power: UInt64 = 0
    /// Times that rules, seed or count were set. With another number of them the rules begin anew.
    public var sets: UInt64 = 0

    public init() {}

    /// The plan of a device's options.
    public init(_ options: DeviceOptions) throws(FaultTextError) {
        rules = try FaultPlan.rules(options.faultRules)
        seed = options.faultSeed
        cutAfter = options.cutAfter ?? 0
    }

    /// Rules with ';' between them; an empty text has none.
    public static func rules(_ text: String) throws(FaultTextError) -> [FaultRule] {
        guard text.utf8.count <= longestText else {
            throw FaultTextError(
                message: "the rules have \(text.utf8.count) bytes", remedy: "write at most \(longestText)")
        }
        var rules: [FaultRule] = []
        if text.utf8.allSatisfy({ $0 == UInt8(ascii: " ") }) { return rules }
        for part in text.split(separator: ";", omittingEmptySubsequences: false) {
            rules.append(try FaultRule(text: part))
        }
        guard rules.count <= mostRules else {
            throw FaultTextError(message: "there are \(rules.count) rules", remedy: "give at most \(mostRules)")
        }
        guard healedFit(rules) else {
            throw FaultTextError(
                message: "the rules with heal have more than \(FaultRule.mostHealed) sectors together",
                remedy: "give fewer sectors, or leave heal out")
        }
        return rules
    }

    /// As `rules(_:)` takes it.
    public var text: String { rules.map(\.description).joined(separator: "; ") }

    private static func healedFit(_ rules: [FaultRule]) -> Bool {
        rules.reduce(0) { $0 + min($1.healed, FaultRule.mostHealed + 1) } <= FaultRule.mostHealed
    }
}

/// The control file: a block for the plan, which `ubd` writes; a block for the state of the device, and a log, which the worker
/// writes. All in words of 64 bits of this machine.
///
/// Each side reads what the other wrote as it would read a stranger's: the plan carries a sum over its words, since it may be
/// read while it is written, and every rule is checked.
public enum FaultControl {
    /// Bytes of a block.
    public static let block = 4096
    /// Places in bytes.
    public static let planOffset = 0
    public static let stateOffset = 4096
    public static let logOffset = 8192
    /// Records of the log; the newest replace the oldest. Words of each.
    public static let records = 2048
    public static let recordWords = 8
    public static let bytes = logOffset + records * recordWords * 8

    /// Words of a block.
    public static let words = block / 8

    /// "ubdfault" and the layout's number.
    static let magic: UInt64 = 0x7562_6466_6c74_0001

    enum PlanWord {
        static let magic = 0
        static let sequence = 1
        static let power = 2
        static let seed = 3
        static let cutAfter = 4
        static let count = 5
        /// The generation of the device, for `ubd`.
        static let generation = 6
        static let sets = 7
        static let rules = 16
        static let sum = FaultControl.words - 1
    }

    /// Words of the state.
    public enum State {
        public static let magic = 0
        /// The number of the last plan that is in force.
        public static let sequence = 1
        /// The last command of the power that was obeyed (`FaultPlan.power`).
        public static let power = 2
        /// 0: the power is on. 1: it is off. 2: it is off, and what is left of the cache is still being written.
        public static let off = 3
        /// Workers that have served.
        public static let starts = 4
        public static let requests = 5
        public static let writes = 6
        /// Requests that were struck, by `FaultRule.Action`.
        public static let struck = 7
        /// Requests that are stuck now.
        public static let stuck = 14
        /// Records ever written to the log.
        public static let logged = 15
        /// Blocks of 4096 bytes in the cache.
        public static let cached = 16
        public static let cuts = 17
        /// 512-byte sectors that power cuts lost, and left.
        public static let lost = 18
        public static let kept = 19
        /// Requests that failed because the power was off.
        public static let refused = 20
        /// A plan with that number was no plan.
        public static let rejected = 21
        /// `FaultPlan.sets` of the plan in force.
        public static let sets = 22
        /// The power is cut when so many writes have come; 0: never.
        public static let threshold = 23
        /// For each rule: requests that it was about, and those that it struck.
        public static let matches = 32
        public static let hits = 48
    }

    /// Words of a record of the log.
    public enum Record {
        /// The number of the record, from 1 on.
        public static let number = 0
        /// Operation in bits 0 to 7, FaultRule.Action above (0: a power cut), rule, and the failure.
        public static let what = 1
        public static let sector = 2
        /// In the low half, and in the high half what the action says: microseconds, sectors, bits.
        public static let sectors = 3
        /// The number of the request among all, and among those that the rule is about, from 1 on.
        public static let request = 4
        public static let match = 5
    }

    /// A plan with its number as a block of words.
    public static func encode(_ plan: FaultPlan, sequence: UInt64, generation: UInt64) -> [UInt64] {
        var words = [UInt64](repeating: 0, count: FaultControl.words)
        words[PlanWord.magic] = magic
        words[PlanWord.sequence] = sequence
        words[PlanWord.power] = plan.power
        words[PlanWord.seed] = plan.seed
        words[PlanWord.cutAfter] = plan.cutAfter
        words[PlanWord.count] = UInt64(plan.rules.count)
        words[PlanWord.generation] = generation
        words[PlanWord.sets] = plan.sets
        words.withUnsafeMutableBufferPointer { words in
            for (index, rule) in plan.rules.enumerated() {
                rule.encode(to: words.baseAddress! + PlanWord.rules + index * FaultRule.words)
            }
            words[PlanWord.sum] = sum(UnsafePointer(words.baseAddress!))
        }
        return words
    }

    /// The number of the plan in a block; nil when there is none, or none whole.
    public static func sequence(_ words: UnsafePointer<UInt64>) -> UInt64? {
        guard words[PlanWord.magic] == magic, words[PlanWord.sum] == sum(words) else { return nil }
        return words[PlanWord.sequence]
    }

    /// The generation of the device whose plan this is.
    public static func generation(_ words: UnsafePointer<UInt64>) -> UInt64 { words[PlanWord.generation] }

    /// A plan without its rules.
    public struct Head: Equatable, Sendable, BitwiseCopyable {
        public let count: Int
        public let seed: UInt64
        public let cutAfter: UInt64
        public let power: UInt64
        public let sets: UInt64
    }

    /// Takes a plan apart without any memory of its own. `rules`: room for `FaultPlan.mostRules`. nil when there is no plan or a
    /// rule is not sound, and then `rules` has no meaning.
    public static func decode(_ words: UnsafePointer<UInt64>, rules: UnsafeMutablePointer<FaultRule>) -> Head? {
        let count = words[PlanWord.count]
        guard sequence(words) != nil, count <= UInt64(FaultPlan.mostRules) else { return nil }
        var healed: UInt64 = 0
        for index in 0..<Int(count) {
            guard let rule = FaultRule(words + PlanWord.rules + index * FaultRule.words) else { return nil }
            // Each is at most `mostHealed`.
            healed += rule.healed
            guard healed <= FaultRule.mostHealed else { return nil }
            rules[index] = rule
        }
        return Head(
            count: Int(count), seed: words[PlanWord.seed], cutAfter: words[PlanWord.cutAfter],
            power: words[PlanWord.power], sets: words[PlanWord.sets])
    }

    /// The plan of a block, for `ubd`.
    public static func plan(_ words: UnsafePointer<UInt64>) -> FaultPlan? {
        var plan = FaultPlan()
        let rules = UnsafeMutablePointer<FaultRule>.allocate(capacity: FaultPlan.mostRules)
        defer { rules.deallocate() }
        guard let head = decode(words, rules: rules) else { return nil }
        (plan.seed, plan.cutAfter, plan.power, plan.sets) = (head.seed, head.cutAfter, head.power, head.sets)
        plan.rules = (0..<head.count).map { rules[$0] }
        return plan
    }

    /// Whether a block has the state of a device.
    public static func isState(_ words: UnsafePointer<UInt64>) -> Bool { words[State.magic] == magic }

    public static func markState(_ words: UnsafeMutablePointer<UInt64>) { words[State.magic] = magic }

    /// FNV-1a over all words but the last.
    static func sum(_ words: UnsafePointer<UInt64>) -> UInt64 {
        var sum: UInt64 = 0xcbf2_9ce4_8422_2325
        var index = 0
        while index < FaultControl.words - 1 {
            sum = (sum ^ words[index]) &* 0x100_0000_01b3
            index += 1
        }
        return sum
    }
}

/// Numbers that look random and are the same for the same arguments (splitmix64, Steele and others 2014).
public enum FaultDice {
    @inlinable
    public static func roll(_ seed: UInt64, _ stream: UInt64, _ number: UInt64) -> UInt64 {
        mix(mix(seed &+ stream &* 0x9e37_79b9_7f4a_7c15) &+ number &* 0xd1b5_4a32_d192_ed03)
    }

    @inlinable
    static func mix(_ value: UInt64) -> UInt64 {
        var value = value &+ 0x9e37_79b9_7f4a_7c15
        value = (value ^ value >> 30) &* 0xbf58_476d_1ce4_e5b9
        value = (value ^ value >> 27) &* 0x94d0_49bb_1331_11eb
        return value ^ value >> 31
    }
}
