import Numbers
import Policy
import Testing

@Suite("The decisions of the access policy")
struct AccessDecisionTests {
    private let member = AccessPeer(uid: 1000, groups: [1000, 990])
    private let stranger = AccessPeer(uid: 1002, groups: [1002])
    private let nothing = AccessUsage(devices: 0, memoryBytes: 0)

    private func request(_ target: String = "null") -> AccessRequest {
        AccessRequest(target: target, readOnly: false, queues: 1, depth: 128, maxIOBytes: 512 << 10, sizeBytes: nil)
    }

    @Test("the first line that fits user and target decides, even when a later one is wider")
    func firstMatch() throws {
        let policy = try access(
            """
            deny  uid=1000  target=loop
            allow group=ubd target=null max-queues=1
            allow uid=*     target=*
            """)
        #expect(policy.decide(member, request("loop"), usage: nothing) == .refused(.denied(policy.rules[0])))
        #expect(policy.decide(member, request("null"), usage: nothing) == .allowed(policy.rules[1]))
        #expect(policy.decide(stranger, request("null"), usage: nothing) == .allowed(policy.rules[2]))
        var wide = request("null")
        wide.queues = 2
        #expect(
            policy.decide(member, wide, usage: nothing)
                == .refused(.overLimit(policy.rules[1], limit: "max-queues", maximum: 1, wanted: 2)))
    }

    @Test("without a fitting line the answer is no, with the lines that allow the target to others")
    func defaultDeny() throws {
        let policy = try access("deny uid=7 target=loop\nallow group=ubd target=loop\nallow uid=0 target=null")
        #expect(
            policy.decide(stranger, request("loop"), usage: nothing)
                == .refused(.noRule(candidates: [policy.rules[1]])))
        #expect(
            try access("").decide(AccessPeer(uid: 0, groups: [0]), request(), usage: nothing)
                == .refused(.noRule(candidates: [])))
    }

    @Test("several identities in one line must all fit")
    func conjunction() throws {
        let policy = try access("allow uid=1000 group=ubd target=*")
        #expect(policy.rule(for: member, target: "null") != nil)
        #expect(policy.rule(for: AccessPeer(uid: 1000, groups: [1000]), target: "null") == nil)
        #expect(policy.rule(for: AccessPeer(uid: 1001, groups: [990]), target: "null") == nil)
    }

    @Test("only nbd=any lets connections lead to other hosts")
    func servers() throws {
        let policy = try access(
            """
            allow uid=1 target=*
            allow uid=2 target=* nbd=local
            allow uid=3 target=* nbd=any
            """)
        #expect(policy.rules.map(\.limits.anyServer) == [false, false, true])
    }

    @Test("mode=ro gives read-only devices only")
    func readOnly() throws {
        let policy = try access("allow uid=1000 target=* mode=ro")
        var asked = request()
        #expect(policy.decide(member, asked, usage: nothing) == .refused(.readOnlyOnly(policy.rules[0])))
        asked.readOnly = true
        #expect(policy.decide(member, asked, usage: nothing) == .allowed(policy.rules[0]))
    }

    @Test("io-timeout bounds what is asked for on both sides; one that is not asked for is not refused")
    func ioTimeout() throws {
        let policy = try access("allow uid=1000 target=* io-timeout=5-60")
        #expect(policy.rules[0].limits.ioTimeout == 5...60)
        func decide(_ seconds: UInt64?) -> AccessDecision {
            var asked = request()
            asked.ioTimeout = seconds
            return policy.decide(member, asked, usage: nothing)
        }
        for seconds: UInt64? in [nil, 5, 60] { #expect(decide(seconds) == .allowed(policy.rules[0])) }
        for seconds: UInt64 in [4, 61] {
            let refusal = AccessRefusal.ioTimeout(policy.rules[0], bounds: 5...60, wanted: seconds)
            #expect(decide(seconds) == .refused(refusal))
        }
        #expect(try access("allow uid=1 target=* io-timeout=30").rules[0].limits.ioTimeout == 30...30)
    }

    @Test(
        "an io-timeout that can not be is refused", arguments: ["1", "3601", "9-5", "5-", "-5", "5-6-7", "x", "05-9"])
    func badTimeout(_ value: String) {
        #expect(throws: PolicyError.self) { try access("allow uid=1 target=* io-timeout=" + value) }
    }

    @Test("a line with ids gives these numbers with -n and no other")
    func ownIDs() throws {
        let policy = try access("allow uid=1000 target=* ids=4-6,9\nallow uid=* target=*")
        let rule = policy.rules[0]
        func decide(_ id: UInt64?) -> AccessDecision {
            var asked = request()
            asked.id = id
            return policy.decide(member, asked, usage: nothing)
        }
        for id: UInt64? in [nil, 4, 6, 9] { #expect(decide(id) == .allowed(rule)) }
        for id: UInt64 in [0, 3, 7, 8, 10, .max] {
            #expect(decide(id) == .refused(.id(rule, allowed: NumberList([4...6, 9...9]), wanted: id)))
        }
    }

    @Test("of all groups only those that lines name matter")
    func namedGroups() throws {
        #expect(try access("allow uid=* target=*").groups.isEmpty)
        let policy = try access("deny group=7 uid=1000 target=null\nallow group=8 target=*\nallow uid=0 target=*")
        #expect(policy.groups == [7, 8])
    }

    @Test("a number that a line names is for nobody whose line does not name it, root neither")
    func reservedIDs() throws {
        let policy = try access(
            "allow uid=0 target=*\nallow uid=1000 target=* ids=4-6\nallow uid=1002 target=null ids=6-8")
        let root = AccessPeer(uid: 0, groups: [0])
        var asked = request()
        for (id, holder) in [(4, 1), (6, 1), (7, 2)] as [(UInt64, Int)] {
            asked.id = id
            #expect(
                policy.decide(root, asked, usage: nothing)
                    == .refused(.reservedID(policy.rules[0], holder: policy.rules[holder], wanted: id)))
        }
        asked.id = 9
        #expect(policy.decide(root, asked, usage: nothing) == .allowed(policy.rules[0]))
        // Both lines name it: users of either may have it.
        asked.id = 6
        #expect(policy.decide(member, asked, usage: nothing) == .allowed(policy.rules[1]))
        #expect(policy.decide(stranger, asked, usage: nothing) == .allowed(policy.rules[2]))
    }

    @Test("a number that comes by itself is one that no line names, and only then one of the line's own")
    func automaticIDs() throws {
        let policy = try access("allow uid=0 target=* ids=0-3\nallow uid=* target=*\ndeny uid=5 target=*")
        let free = NumberList([4...AccessPolicy.greatestID])
        #expect(policy.automaticIDs(for: policy.rules[0]) == [free, NumberList([0...3])])
        #expect(policy.automaticIDs(for: policy.rules[1]) == [free])
        let all = try access("allow uid=* target=* ids=0-1048575")
        #expect(all.automaticIDs(for: all.rules[0]) == [NumberList([]), NumberList([0...AccessPolicy.greatestID])])
        let none = try access("allow uid=* target=*")
        #expect(none.automaticIDs(for: none.rules[0]) == [NumberList([0...AccessPolicy.greatestID])])
    }

    @Test("cpus bounds what is asked for; who asks for none is not refused")
    func cpus() throws {
        let policy = try access("allow uid=1000 target=* cpus=0-1,3")
        func decide(_ cpus: NumberList?) -> AccessDecision {
            var asked = request()
            asked.cpus = cpus
            return policy.decide(member, asked, usage: nothing)
        }
        for cpus in [nil, NumberList([1...1]), NumberList([0...1, 3...3])] {
            #expect(decide(cpus) == .allowed(policy.rules[0]))
        }
        #expect(
            decide(NumberList([0...3]))
                == .refused(.cpus(policy.rules[0], allowed: NumberList([0...1, 3...3]), wanted: 2)))
    }

    @Test(
        "each limit allows its own value and refuses one more",
        arguments: [
            ("max-devices=2", "max-devices", 2, 3), ("max-queues=4", "max-queues", 4, 5),
            ("max-depth=128", "max-depth", 128, 129), ("max-io-size=512K", "max-io-size", 524288, 524289),
            ("max-size=1G", "max-size", 1 << 30, 1 << 30 + 1),
            // 64 MiB of buffers, and 64 MiB that the worker may lock besides; 96 MiB of buffers.
            ("device-memory=128M", "device-memory", 64 << 20, 96 << 20),
            ("user-memory=256M", "user-memory", 64 << 20, 64 << 20 + 1),
            ("device-tasks=48", "device-tasks", 2, 3), ("connections=9", "connections", 9, 10),
            ("memory-disks=64M", "memory-disks", 64 << 20, 64 << 20 + 512), ("", "memory-disks", 0, 512),
            // The limit without the key.
            ("", "connections", 4, 5),
        ] as [(String, String, UInt64, UInt64)])
    func limits(line: String, limit: String, maximum: UInt64, above: UInt64) throws {
        let policy = try access("allow uid=1000 target=* " + line)
        func decide(_ value: UInt64) -> AccessDecision {
            var asked = request()
            var usage = nothing
            switch limit {
            case "max-devices": usage.devices = value - 1
            case "max-queues": asked.queues = value
            case "max-depth": asked.depth = value
            case "max-io-size": asked.maxIOBytes = value
            case "device-memory": asked.maxIOBytes = value / 128
            case "user-memory": usage = AccessUsage(devices: 1, memoryBytes: value)
            case "device-tasks": asked.queues = value
            case "memory-disks": asked.diskBytes = value
            case "connections": asked.connections = value
            default: asked.sizeBytes = value
            }
            return policy.decide(member, asked, usage: usage)
        }
        #expect(decide(maximum) == .allowed(policy.rules[0]))
        // The device's needs, where a limit covers more than the request.
        let needs: [String: (UInt64, UInt64)] = [
            "device-memory": (128 << 20, 160 << 20), "user-memory": (256 << 20, 256 << 20 + 1),
            "device-tasks": (48, 70),
        ]
        let (most, wanted) = needs[limit] ?? (maximum, above)
        #expect(
            decide(above) == .refused(.overLimit(policy.rules[0], limit: limit, maximum: most, wanted: wanted)))
    }

    @Test("memory is queues times depth times the largest request, summed over the user's devices")
    func memory() throws {
        let policy = try access("allow uid=1000 target=* max-memory=128M")
        #expect(request().memoryBytes == 64 << 20)
        let one = AccessUsage(devices: 1, memoryBytes: 64 << 20)
        #expect(policy.decide(member, request(), usage: one) == .allowed(policy.rules[0]))
        #expect(
            policy.decide(member, request(), usage: AccessUsage(devices: 1, memoryBytes: 64 << 20 + 1))
                == .refused(
                    .overLimit(policy.rules[0], limit: "max-memory", maximum: 128 << 20, wanted: 128 << 20 + 1)))
    }

    @Test("spare buffers are memory, too")
    func spareBuffers() throws {
        let policy = try access("allow uid=1000 target=* max-memory=64M")
        var more = request()
        #expect(policy.decide(member, more, usage: nothing) == .allowed(policy.rules[0]))
        more.spareBuffers = 8
        let bytes = more.queues * (more.depth + 8) * more.maxIOBytes
        #expect(more.memoryBytes == bytes)
        #expect(
            policy.decide(member, more, usage: nothing)
                == .refused(.overLimit(policy.rules[0], limit: "max-memory", maximum: 64 << 20, wanted: bytes)))
    }

    @Test("absurd numbers are too many, not an overflow")
    func saturation() throws {
        let policy = try access("allow uid=1000 target=* max-memory=16777215T")
        let absurd = AccessRequest(
            target: "null", readOnly: true, queues: .max, depth: .max, maxIOBytes: .max, sizeBytes: .max)
        #expect(absurd.memoryBytes == .max)
        #expect(
            policy.decide(member, absurd, usage: AccessUsage(devices: .max, memoryBytes: .max))
                == .refused(
                    .overLimit(policy.rules[0], limit: "max-memory", maximum: 16_777_215 << 40, wanted: .max)))
        #expect(
            AccessRequest(
                target: "null", readOnly: true, queues: 0, depth: .max, maxIOBytes: .max, sizeBytes: nil
            ).memoryBytes == 0)
    }

    @Test("the overview has the targets with their lines, and the widest of their limits")
    func overview() throws {
        let policy = try access(
            """
            allow uid=1000 target=null max-devices=2 max-depth=64 mode=ro
            allow uid=1000 target=loop max-devices=5 zero-copy=yes connections=2 nbd=any
            """)
        let overview = try #require(policy.overview(for: member, targets: ["null", "loop"]))
        #expect(overview.targets == ["null", "loop"])
        #expect(overview.rules.map(\.rule) == policy.rules)
        #expect(overview.limits.maxDevices == 5)
        #expect(overview.limits.maxDepth == nil)
        #expect(overview.limits.zeroCopy)
        // The first line allows the usual number.
        #expect(overview.limits.connections == 4 && overview.limits.anyServer)
        #expect(!overview.limits.readOnlyOnly)
        #expect(policy.overview(for: stranger, targets: ["null", "loop"]) == nil)
    }
}
