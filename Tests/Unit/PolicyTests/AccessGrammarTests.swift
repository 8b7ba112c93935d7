import Policy
import Testing

@Suite("The grammar of the access policy")
struct AccessGrammarTests {
    @Test("a line has a verb, identities, targets, limits and rights")
    func wholeLine() throws {
        let text =
            "  allow group=ubd uid=1000 target=loop,null mode=ro max-devices=3 max-queues=4 max-depth=256 "
            + "max-memory=64M max-size=2T max-io-size=512K zero-copy=yes allow-other-fs=yes allow-network-fs=no"
        let rule = try #require(try access(text + "  # why").rules.first)
        var limits = AccessLimits()
        limits.readOnlyOnly = true
        limits.maxDevices = 3
        limits.maxQueues = 4
        limits.maxDepth = 256
        limits.maxMemoryBytes = 64 << 20
        limits.maxSizeBytes = 2 << 40
        limits.maxIOBytes = 512 << 10
        limits.zeroCopy = true
        limits.otherFileSystem = true
        #expect(rule.isAllow)
        #expect(rule.identities == [.gid(990), .uid(1000)])
        #expect(rule.targets == ["loop", "null"])
        #expect(rule.limits == limits)
        #expect(rule.location.description == "access.policy:1:3")
        #expect(rule.text == text.drop { $0 == " " })
    }

    @Test("without limits there are none, and without rights none are given")
    func defaults() throws {
        let rule = try #require(try access("allow uid=* target=*").rules.first)
        #expect(rule.limits == AccessLimits())
        #expect(rule.targets == nil)
        #expect(rule.identities == [.everybody])
    }

    @Test("names become numbers once; a number after group= is taken as it is")
    func names() throws {
        let policy = try access("allow user=bob target=*\nallow group=5 target=*\ndeny group=ubd target=null")
        #expect(policy.rules.map(\.identities) == [[.uid(1001)], [.gid(5)], [.gid(990)]])
        #expect(policy.warnings.isEmpty)
    }

    @Test("an allow line for a name that the host does not have stays, fits nobody and is warned about")
    func unknownNames() throws {
        let policy = try access("allow group=nobody-knows target=*\nallow user=eve target=*")
        #expect(policy.rules.map(\.identities) == [[.unknown], [.unknown]])
        #expect(
            policy.warnings.map(\.description) == [
                "access.policy:1:13: this host has no group 'nobody-knows': the line matches nobody",
                "access.policy:2:12: this host has no user 'eve': the line matches nobody",
            ])
        #expect(policy.rule(for: AccessPeer(uid: 0, groups: [0]), target: "null") == nil)
    }

    @Test("a line that an earlier one hides is warned about, one that is wider is not")
    func unreachable() throws {
        let policy = try access(
            """
            allow group=ubd target=null
            deny  group=ubd uid=1000 target=null
            allow group=ubd target=null,loop
            allow uid=* target=*
            deny  uid=7 target=loop
            """)
        #expect(
            policy.warnings.map(\.description) == [
                "access.policy:2:1: never reached: line 1 decides before it",
                "access.policy:5:1: never reached: line 4 decides before it",
            ])
    }

    @Test("the old name of a right means what the new one means, and does not stand beside it")
    func oldNames() throws {
        let rule = try #require(try access("allow uid=1 target=* allow-fuse=yes").rules.first)
        #expect(rule.limits.otherFileSystem && !rule.limits.networkFileSystem)
        #expect(throws: PolicyError.self) { try access("allow uid=1 target=* allow-other-fs=no allow-fuse=yes") }
    }

    @Test("an empty policy is one that refuses everybody")
    func empty() throws {
        #expect(try access("# nobody\n\n").rules.isEmpty)
    }

    private static let keys =
        "uid, user, group, target, mode, max-devices, max-queues, max-depth, max-memory, memory-disks, max-size, max-io-size, "
        + "io-timeout, max-starts, penalty, ids, cpus, "
        + "device-memory, user-memory, device-tasks, cpu-weight, cpu-quota, io-bandwidth, io-operations, "
        + "connections, nbd, zero-copy, allow-other-fs, allow-network-fs or trusted-content"
    private static let size = "bytes, or a number with K, M, G or T (powers of 1024), from 1 to below 2^64"

    private static func numbers(_ highest: Int) -> String { "numbers up to \(highest) and ranges, as in 0-3,8" }

    @Test(
        "what is not in the grammar is refused at its line and column, with what was expected",
        arguments: [
            ("permit uid=1 target=*", "1:1 found 'permit uid=1 target='; expected 'allow' or 'deny'"),
            ("\n\n  Allow", "3:3 found 'Allow'; expected 'allow' or 'deny'"),
            (
                "allow target=null",
                "1:18 found the end of the line; expected the users of the line: uid=NUMBER, user=NAME, group=NAME or uid=*"
            ),
            ("allow uid=1", "1:12 found the end of the line; expected target=NAME,… or target=*"),
            ("allow uid", "1:7 found 'uid'; expected key=value"),
            ("allow =1", "1:7 found '=1'; expected key=value"),
            ("allow uid =1", "1:7 found 'uid =1'; expected key=value"),
            ("allow uid= 1", "1:11 found ' 1'; expected a value after uid="),
            ("allow uid=", "1:11 found the end of the line; expected a value after uid="),
            ("allow uid=1 uid=2 target=*", "1:13 uid= is in the line already"),
            ("allow uid=-1", "1:11 found '-1'; expected a user's number or * after uid="),
            ("allow uid=+1", "1:11 found '+1'; expected a user's number or * after uid="),
            ("allow uid=01", "1:11 found '01'; expected a user's number or * after uid="),
            ("allow uid=4294967295", "1:11 found '4294967295'; expected a user's number or * after uid="),
            ("allow uid=alice", "1:11 found 'alice'; expected a user's number or * after uid="),
            ("allow user=*", "1:12 found '*'; expected the name of a user after user="),
            ("allow user=1000", "1:12 found '1000'; expected the name of a user after user="),
            ("allow group=-x", "1:13 found '-x'; expected the name of a group after group="),
            ("deny group=gone target=*", "1:12 found 'gone target=*'; expected a group of this host on a deny line"),
            (
                "allow uid=1 target=nul",
                "1:20 found 'nul'; expected targets that ubd has (null, loop) or *"
            ),
            (
                "allow uid=1 target=null,",
                "1:20 found 'null,'; expected targets that ubd has (null, loop) or *"
            ),
            ("allow uid=1 target=null,null", "1:20 found 'null,null'; expected each target once"),
            ("allow uid=1 target=* mode=r", "1:27 found 'r'; expected mode=ro or mode=rw"),
            (
                "allow uid=1 target=* max-devices=0",
                "1:34 found '0'; expected a number from 1 to 4294967295"
            ),
            (
                "allow uid=1 target=* max-depth=1K",
                "1:32 found '1K'; expected a number from 1 to 4294967295"
            ),
            ("allow uid=1 target=* max-size=0", "1:31 found '0'; expected \(size)"),
            ("allow uid=1 target=* max-size=K", "1:31 found 'K'; expected \(size)"),
            ("allow uid=1 target=* max-size=1k", "1:31 found '1k'; expected \(size)"),
            ("allow uid=1 target=* max-size=1KK", "1:31 found '1KK'; expected \(size)"),
            ("allow uid=1 target=* max-size=1.5G", "1:31 found '1.5G'; expected \(size)"),
            ("allow uid=1 target=* max-size=16777216T", "1:31 found '16777216T'; expected \(size)"),
            ("allow uid=1 target=* ids=1048576", "1:26 found '1048576'; expected \(numbers(1_048_575))"),
            ("allow uid=1 target=* ids=5-", "1:26 found '5-'; expected \(numbers(1_048_575))"),
            ("allow uid=1 target=* ids=5-3", "1:26 found '5-3'; expected \(numbers(1_048_575))"),
            ("allow uid=1 target=* ids=1,,2", "1:26 found '1,,2'; expected \(numbers(1_048_575))"),
            ("allow uid=1 target=* cpus=8192", "1:27 found '8192'; expected \(numbers(8191))"),
            ("allow uid=1 target=* cpus=+1", "1:27 found '+1'; expected \(numbers(8191))"),
            (
                "allow uid=1 target=* device-memory=4095",
                "1:36 found '4095'; expected from 4096 bytes to 4194304T"
            ),
            (
                "allow uid=1 target=* user-memory=4194305T",
                "1:34 found '4194305T'; expected from 4096 bytes to 4194304T"
            ),
            ("allow uid=1 target=* cpu-weight=0", "1:33 found '0'; expected a number from 1 to 10000"),
            ("allow uid=1 target=* cpu-quota=50%", "1:32 found '50%'; expected a number from 1 to 1000000"),
            ("allow uid=1 target=* device-tasks=0", "1:35 found '0'; expected a number from 1 to 4194304"),
            ("allow uid=1 target=* io-operations=1K", "1:36 found '1K'; expected a number from 1 to 4294967295"),
            ("allow uid=1 target=* connections=0", "1:34 found '0'; expected a number from 1 to 16"),
            ("allow uid=1 target=* connections=17", "1:34 found '17'; expected a number from 1 to 16"),
            ("allow uid=1 target=* nbd=yes", "1:26 found 'yes'; expected nbd=local or nbd=any"),
            ("allow uid=1 target=* nbd=any nbd=any", "1:30 nbd= is in the line already"),
            ("deny uid=1 target=* nbd=any", "1:21 nbd= on a deny line; expected uid, user, group or target"),
            ("allow uid=1 target=* zero-copy=true", "1:32 found 'true'; expected yes or no"),
            ("allow uid=1 target=* max-speed=1", "1:22 found 'max-speed=1'; expected \(keys)"),
            (
                "deny uid=1 target=* max-devices=1",
                "1:21 max-devices= on a deny line; expected uid, user, group or target"
            ),
            ("allow uid=1\ttarget=*\u{0}", "1:21 byte 0x0; expected printable ASCII (any UTF-8 in a comment)"),
        ])
    func refusals(text: String, expected: String) {
        #expect(refusal { () throws(PolicyError) in _ = try access(text) } == expected)
    }

    @Test("the largest size and the largest numbers are taken")
    func greatest() throws {
        let rule = try #require(
            try access("allow uid=4294967294 target=* max-size=16777215T max-depth=4294967295").rules.first)
        #expect(rule.limits.maxSizeBytes == 16_777_215 << 40)
        #expect(rule.limits.maxDepth == 4_294_967_295)
    }

    @Test("more than 400 rules are refused")
    func bounds() throws {
        func rules(_ count: Int) -> String {
            (0..<count).map { "allow uid=\($0) target=*" }.joined(separator: "\n")
        }
        #expect(try access(rules(400)).rules.count == 400)
        #expect(refusal { () throws(PolicyError) in _ = try access(rules(401)) } == "401:1 more than 400 rules")
    }
}
