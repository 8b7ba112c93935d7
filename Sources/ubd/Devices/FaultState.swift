import Targets
import Varlink

/// What the worker of a fault device says of itself. Nothing is decided by it.
struct FaultState {
    enum Power: String {
        case on
        case off
        /// What a power cut leaves is still being written.
        case goingOff = "going-off"
    }

    private let words: [UInt64]

    /// `words`: the block of the state.
    init(_ words: [UInt64]) { self.words = words }

    private typealias Word = FaultControl.State

    var sequence: UInt64 { words[Word.sequence] }
    var rejected: UInt64 { words[Word.rejected] }
    var power: Power { words[Word.off] == 0 ? .on : words[Word.off] == 2 ? .goingOff : .off }
    /// Records that were ever written to the log.
    var logged: UInt64 { words[Word.logged] }

    /// What is counted, under the names of the JSON.
    var counts: [(name: String, value: UInt64)] {
        [
            ("requests", words[Word.requests]), ("writes", words[Word.writes]), ("refused", words[Word.refused]),
            ("stuckNow", words[Word.stuck]), ("cachedBytes", words[Word.cached] &* UInt64(FaultControl.block)),
            ("cuts", words[Word.cuts]), ("lostSectors", words[Word.lost]), ("keptSectors", words[Word.kept]),
            ("logged", logged), ("workers", words[Word.starts]),
        ]
    }

    /// Requests that a rule was about, and those that it struck.
    func counts(of rule: Int) -> (matched: UInt64, struck: UInt64) {
        (words[Word.matches + rule], words[Word.hits + rule])
    }

    /// Writes before the power is cut; nil: it is not to be cut.
    var writesLeft: UInt64? {
        let threshold = words[Word.threshold]
        return threshold == 0 ? nil : threshold - min(threshold, words[Word.writes])
    }

    func json(_ plan: FaultPlan, device: UInt32) -> JSON {
        let rules = plan.rules.enumerated().map { index, rule in
            JSON.record([
                ("rule", .string(rule.description)), ("matched", .integer(Int64(clamping: counts(of: index).matched))),
                ("struck", .integer(Int64(clamping: counts(of: index).struck))),
            ])
        }
        return .record(
            [
                ("id", .integer(Int64(device))), ("power", .string(power.rawValue)),
                ("seed", .integer(Int64(clamping: plan.seed))), ("rules", .array(rules)),
                ("writesLeft", writesLeft.map { .integer(Int64(clamping: $0)) }),
            ] + counts.map { ($0.name, .integer(Int64(clamping: $0.value))) })
    }
}

/// A record of the log: a request that was struck, or a power cut.
struct FaultRecord {
    let number: UInt64
    private let operations: FaultRule.Operations
    /// nil: the power was cut.
    private let action: FaultRule.Action?
    private let rule: UInt64
    private let failure: FaultRule.Failure
    private let sector: UInt64
    private let sectors: UInt64
    private let detail: UInt64
    private let request: UInt64
    private let match: UInt64

    /// nil when there is none.
    init?(_ words: ArraySlice<UInt64>) {
        typealias Place = FaultControl.Record
        func word(_ place: Int) -> UInt64 { words[words.startIndex + place] }
        number = word(Place.number)
        guard number > 0 else { return nil }
        let what = word(Place.what)
        operations = FaultRule.Operations(rawValue: UInt8(truncatingIfNeeded: what))
        action = FaultRule.Action(rawValue: UInt8(truncatingIfNeeded: what >> 8))
        rule = what >> 16 & 0xff
        failure = FaultRule.Failure(rawValue: UInt8(truncatingIfNeeded: what >> 24)) ?? .io
        sector = word(Place.sector)
        sectors = word(Place.sectors) & 0xffff_ffff
        detail = word(Place.sectors) >> 32
        request = word(Place.request)
        match = word(Place.match)
    }

    var actionName: String {
        switch action {
        case nil: "cut"
        case .delay?, .exponential?: "delay"
        case .error?: "error"
        case .torn?: "torn"
        case .flip?: "flip"
        case .stuck?: "stuck"
        }
    }

    /// What the action did, with its unit.
    private var effect: (name: String, value: JSON)? {
        switch action {
        case nil: ("lostSectors", .integer(Int64(detail)))
        case .delay?, .exponential?: ("microseconds", .integer(Int64(detail)))
        case .error?: ("error", .string(failure.name))
        case .torn?: ("writtenSectors", .integer(Int64(detail)))
        case .flip?: ("bits", .integer(Int64(detail)))
        case .stuck?: nil
        }
    }

    var operation: String { operations.names.joined(separator: ",") }

    /// As a line of a table: the effect, and where.
    var cells: [String] {
        let effect = effect.map { "\($0.name) \($0.value.text)" } ?? ""
        guard action != nil else { return ["\(number)", "\(request)", "-", "cut", "-", effect] }
        return ["\(number)", "\(request)", operation, actionName, "\(sector)+\(sectors)", effect]
    }

    static let header = ["NUMBER", "REQUEST", "OPERATION", "ACTION", "SECTORS", "EFFECT"]

    var json: JSON {
        let isCut = action == nil
        return .record([
            ("number", .integer(Int64(clamping: number))), ("request", .integer(Int64(clamping: request))),
            ("action", .string(actionName)), ("operation", isCut ? nil : .string(operation)),
            ("rule", isCut ? nil : .integer(Int64(rule))), ("match", isCut ? nil : .integer(Int64(clamping: match))),
            ("sector", isCut ? nil : .integer(Int64(clamping: sector))),
            ("sectors", isCut ? nil : .integer(Int64(sectors))), (effect?.name ?? "", effect?.value),
            ("keptSectors", isCut ? .integer(Int64(clamping: match)) : nil),
        ])
    }
}
