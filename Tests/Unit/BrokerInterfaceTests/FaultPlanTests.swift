import Targets
import Testing

/// Rules of faults as people write them and as a worker reads them.
@Suite("A plan of faults")
struct FaultPlanTests {
    /// As typed, and what `ubd fault status` makes of it.
    private static let texts: [(typed: String, shown: String)] = [
        ("read error=EIO", "read error=EIO"),
        ("write,read error=ENOSPC rate=1%", "read,write error=ENOSPC rate=1%"),
        ("all error=ETIMEDOUT rate=0.0001% times=3", "all error=ETIMEDOUT rate=0.0001% times=3"),
        ("read sectors=100-199 error=medium heal", "read error=medium heal sectors=100-199"),
        ("read,write,flush,discard stuck", "all stuck"),
        ("write delay=5ms", "write delay=5ms"), ("write delay=1500us-2s", "write delay=1500us-2s"),
        ("flush delay=exp:250us rate=12.5%", "flush delay=exp:250us rate=12.5%"),
        ("write torn=3 after=10", "write torn=3 after=10"), ("write torn=0 acked", "write torn=0 acked"),
        ("read flip=2 sectors=7", "read flip=2 sectors=7-7"), ("discard error=target", "discard error=target"),
        ("  write\terror=transport ", "write error=transport"), ("read error=protection", "read error=protection"),
    ]

    @Test("each rule is shown as it can be typed again, and goes through the control file", arguments: texts)
    func rules(typed: String, shown: String) throws {
        let rule = try FaultRule(text: Substring(typed))
        #expect(rule.description == shown)
        #expect(try FaultRule(text: Substring(shown)) == rule)
        var words = [UInt64](repeating: .max, count: FaultRule.words)
        words.withUnsafeMutableBufferPointer { rule.encode(to: $0.baseAddress!) }
        #expect(words.withUnsafeBufferPointer { FaultRule($0.baseAddress!) } == rule)
    }

    @Test("what is no rule is one line that says what is wrong and what to write instead")
    func refused() throws {
        let wrong = [
            ("", "a rule is empty"), ("read", "does not say what happens"), ("raed error=EIO", "'raed'"),
            ("read error=EPERM", "'EPERM'"), ("read error=EIO stuck", "two actions"), ("read error", "'error'"),
            ("read delay=5", "'5'"), ("read delay=0ms", "can not be"), ("read delay=2ms-1ms", "can not be"),
            ("read delay=2h", "'2h'"), ("read delay=3601s", "can not be"), ("read delay=exp:600s", "can not be"),
            ("read torn=1", "can not be"), ("write flip=1", "can not be"), ("read flip=0", "can not be"),
            ("read flip=65", "can not be"), ("read error=EIO rate=0%", "'0%'"), ("read error=EIO rate=101%", "'101%'"),
            ("read error=EIO rate=5", "'5'"), ("read error=EIO rate=0.00001%", "'0.00001%'"),
            ("read error=EIO rate=100.0001%", "'100.0001%'"), ("read error=EIO times=0", "times"),
            ("read error=EIO sectors=9-8", "9-8"), ("read error=EIO sectors=-1", "sectors"),
            ("read error=EIO after=99999999999999999999", "after"), ("read error=EIO acked", "can not be"),
            ("write error=EIO heal sectors=0-1", "can not be"), ("read error=EIO heal", "can not be"),
            ("read error=EIO heal sectors=0-65536", "can not be"), ("read error=EIO,", "'EIO,'"),
            ("read, error=EIO", "''"), ("read error=EIO; ", "a rule is empty"), ("read error=EIO;;stuck", "is empty"),
        ]
        for (text, part) in wrong {
            // An empty text has no rules, and is fine.
            if text.isEmpty { continue }
            #expect(throws: FaultTextError.self, "\(text)") { try FaultPlan.rules(text) }
            do { _ = try FaultPlan.rules(text) } catch {
                #expect(error.message.contains(part), "\(text): \(error.message)")
                #expect(!error.remedy.isEmpty && !error.message.contains("\n"))
            }
        }
        #expect(throws: FaultTextError.self) {
            try FaultPlan.rules((0..<17).map { _ in "read stuck" }.joined(separator: ";"))
        }
        #expect(throws: FaultTextError.self) {
            try FaultPlan.rules("read error=EIO heal sectors=0-65535; read error=EIO heal sectors=70000")
        }
        #expect(throws: FaultTextError.self) { try FaultPlan.rules(String(repeating: "x", count: 2049)) }
        #expect(try FaultPlan.rules("").isEmpty)
    }

    private func words(_ text: String) throws -> [UInt64] {
        var plan = FaultPlan()
        plan.rules = try FaultPlan.rules(text)
        (plan.seed, plan.cutAfter, plan.power, plan.sets) = (7, 11, 3, 5)
        return FaultControl.encode(plan, sequence: 42, generation: 99)
    }

    @Test("a plan goes through the control file whole")
    func whole() throws {
        let block = try words("read error=EIO; write delay=1ms-2ms rate=5%")
        block.withUnsafeBufferPointer { block in
            #expect(FaultControl.sequence(block.baseAddress!) == 42)
            #expect(FaultControl.generation(block.baseAddress!) == 99)
            let plan = FaultControl.plan(block.baseAddress!)
            #expect(plan?.text == "read error=EIO; write delay=1ms-2ms rate=5%")
            #expect(plan.map { [$0.seed, $0.cutAfter, $0.power, $0.sets] } == [7, 11, 3, 5])
        }
        #expect(block.count * 8 == FaultControl.block && FaultControl.bytes == 8192 + 2048 * 64)
    }

    @Test("a block that is not whole, or has a changed word, is no plan")
    func damaged() throws {
        let block = try words("read error=EIO; write torn=1")
        for index in block.indices {
            var changed = block
            changed[index] ^= 1 << UInt64(index % 64)
            #expect(changed.withUnsafeBufferPointer { FaultControl.plan($0.baseAddress!) } == nil, "\(index)")
        }
        let nothing = [UInt64](repeating: 0, count: FaultControl.words)
        #expect(nothing.withUnsafeBufferPointer { FaultControl.plan($0.baseAddress!) } == nil)
    }

    @Test("rules that no text makes are not taken from words, whatever they are")
    func unsound() throws {
        var sound = 0
        var state: UInt64 = 1
        for _ in 0..<200_000 {
            var words = (0..<FaultRule.words).map { FaultDice.roll(7, UInt64($0), state) }
            state += 1
            // Near what is sound, so that some of them are.
            words[0] = (words[0] & 0x0307_0707) | (((words[0] >> 40) % 1_000_001) << 32)
            (words[6], words[7]) = (state % 97 == 0 ? 1 : 0, 0)
            if state % 3 == 0 { words[5] = words[5] & 0x3f }
            guard let rule = words.withUnsafeBufferPointer({ FaultRule($0.baseAddress!) }) else { continue }
            sound += 1
            #expect(rule.isSound && words[6] == 0 && rule.rate > 0 && rule.first <= rule.last)
            // Numbers beyond these are for whoever writes the words, not for people.
            let isForPeople = [rule.isAnywhere ? 0 : rule.last, rule.after, rule.times].allSatisfy { $0 <= Int64.max }
            if isForPeople { #expect(try FaultRule(text: Substring(rule.description)) == rule) }
        }
        #expect(sound > 100)
    }

    @Test("the dice are the same for the same arguments, and even")
    func dice() {
        #expect(FaultDice.roll(1, 2, 3) == FaultDice.roll(1, 2, 3))
        #expect(
            FaultDice.roll(1, 2, 3) != FaultDice.roll(2, 2, 3) && FaultDice.roll(1, 2, 3) != FaultDice.roll(1, 3, 3))
        let hits = (0..<100_000).count { FaultDice.roll(5, 1, UInt64($0)) % 1_000_000 < 10_000 }
        #expect((800...1200).contains(hits), "\(hits) of 100000 at 1 %")
    }
}
