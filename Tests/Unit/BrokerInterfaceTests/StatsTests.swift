import BrokerInterface
import Numbers
import Testing

@Suite("Counts")
struct CountsTests {
    @Test("add up without ever wrapping round")
    func sum() {
        var large = Counts(wakeUps: .max - 1, batchSizes: [1], latency: [1, .max])
        large.read.bytes = .max
        var small = Counts(inFlight: 2, wakeUps: 5, batchSizes: [1, 2, 3], latency: [1, 1])
        small.read = OperationCount(requests: 1, bytes: 512, errors: 1)
        let sum = large + small
        #expect(sum.wakeUps == .max && sum.read.bytes == .max && sum.read.requests == 1 && sum.inFlight == 2)
        #expect(sum.batchSizes == [2, 2, 3])
        #expect(sum.latency == [2, .max])
    }

    @Test("never differ by less than nothing, whatever a worker claims from one moment to the next")
    func difference() {
        var (now, before) = (Counts(inFlight: 3, wakeUps: 4, latency: [5]), Counts(wakeUps: 9, latency: [2, 7]))
        now.write = OperationCount(requests: 10, bytes: 100, errors: 0)
        before.write = OperationCount(requests: 4, bytes: 200, errors: 1)
        let change = now.since(before)
        #expect(change.write == OperationCount(requests: 6, bytes: 0, errors: 0))
        #expect(change.wakeUps == 0 && change.latency == [3, 0])
        // The number in flight is a current value and no sum.
        #expect(change.inFlight == 3)
    }
}

@Suite("A list of CPUs")
struct CPUListTests {
    @Test("is read as the kernel writes it, and written in the shortest way")
    func text() throws {
        for (typed, shown) in [
            ("0", "0"), ("0-1,3", "0-1,3"), ("3,1,0", "0-1,3"), ("5-5", "5"), ("0-3,2-6,7", "0-7"), ("8191", "8191"),
            ("007", "7"),
        ] {
            #expect(CPUList(typed)?.text == shown, "\(typed)")
        }
    }

    @Test(
        "is nothing else",
        arguments: [
            "", ",", "0,", ",0", "1-", "-1", "-", "2-1", "0-1-2", " 0", "0 ", "0x1", "+1", "a", "8192", "99999999999",
            "0-8192", "٣", "0\n",
        ])
    func refused(text: String) {
        #expect(CPUList(text) == nil)
    }

    @Test("cuts a set of CPUs down to its own, and gives all of its own where the set has none of them")
    func restricting() throws {
        let list = try #require(CPUList("1,3,64"))
        #expect(list.restricting([0b11]) == [0b10, 0])
        #expect(list.restricting([0b100]) == [0b1010, 1])
        #expect(list.restricting([0, 1, 1]) == [0, 1, 0])
    }

    @Test("joins, cuts, and knows what is missing of a range")
    func sets() {
        let one = NumberList([0...3, 8...9])
        #expect(one.union(NumberList([4...5])) == NumberList([0...5, 8...9]))
        #expect(one.intersection(NumberList([2...8])) == NumberList([2...3, 8...8]))
        #expect(one.intersection(NumberList([4...7])).isEmpty)
        #expect(one.gaps(in: 0...10) == NumberList([4...7, 10...10]))
        #expect(one.gaps(in: 1...2).isEmpty)
        #expect(NumberList([]).gaps(in: 0...4) == NumberList([0...4]))
        #expect(NumberList([0...4]).gaps(in: 0...4).isEmpty)
    }

    @Test("knows its bits, and which of them another one lacks")
    func members() throws {
        let list = try #require(CPUList("0-1,3,64,130"))
        #expect(list.words == [0b1011, 1, 4])
        #expect(list.first(notIn: try #require(CPUList("0-8191"))) == nil)
        #expect(list.first(notIn: try #require(CPUList("0,2-63"))) == 1)
        #expect(list.first(notIn: try #require(CPUList("0-129"))) == 130)
    }
}
