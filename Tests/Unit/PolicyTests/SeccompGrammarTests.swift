import Policy
import Testing

@Suite("The grammar of seccomp policies")
struct SeccompGrammarTests {
    private func verdict(_ text: String) throws -> SeccompRule.Verdict {
        try #require(try seccomp(text + " # because").rules.first).verdict
    }

    private func tests(_ tests: (Int, UInt64, UInt64)...) -> [ArgumentTest] {
        tests.map { ArgumentTest(index: $0.0, mask: $0.1, value: $0.2) }
    }

    @Test("a rule allows, refuses with an errno by name or number, or tests arguments")
    func verdicts() throws {
        #expect(try verdict("read: allow") == .allow)
        #expect(try verdict("clone3 :return ENOSYS") == .fail(errno: 38))
        #expect(try verdict("getpid: return 4095") == .fail(errno: 4095))
        #expect(
            try verdict("read: arg0 == 3")
                == .test(alternatives: [tests((0, .max, 3))], otherwise: nil))
        #expect(
            try verdict("mmap: arg2 in ~PROT_EXEC; return EPERM")
                == .test(alternatives: [tests((2, 4, 0))], otherwise: 1))
        #expect(
            try verdict("mmap: arg2 in PROT_READ|0x2")
                == .test(alternatives: [tests((2, ~3, 0))], otherwise: nil))
        #expect(
            try verdict("mmap: arg2 in ~(PROT_EXEC | PROT_WRITE)")
                == .test(alternatives: [tests((2, 6, 0))], otherwise: nil))
        #expect(
            try verdict("clone: arg0 & CLONE_THREAD || arg5 == 0xffffffffffffffff")
                == .test(alternatives: [tests((0, 0x10000, 0x10000)), tests((5, .max, .max))], otherwise: nil))
    }

    @Test("&& binds tighter than ||, and tests of one argument become one test, sorted by argument")
    func conjunctions() throws {
        #expect(
            try verdict("ioctl: arg3 == 1 && arg1 & 2 && arg1 in 6 || arg0==0")
                == .test(
                    alternatives: [tests((1, ~4, 2), (3, .max, 1)), tests((0, .max, 0))], otherwise: nil))
    }

    @Test("an included file's rules stand where the @include stands, with their own places")
    func include() throws {
        let policy = try seccomp("read: allow\n@include b.policy\nexit: allow\n", include: "\n  write: allow\n")
        #expect(policy.rules.map(\.name) == ["read", "write", "exit"])
        #expect(policy.rules.map(\.location.description) == ["a.policy:1:1", "b.policy:2:3", "a.policy:3:1"])
    }

    @Test("rules of an @arch block count on that architecture only")
    func architectures() throws {
        let policy = try seccomp(
            "@arch x86_64 {\n poll: allow\n}\n@arch aarch64 {\n poll: return ENOSYS\n}\nppoll: allow")
        #expect(policy.rules(for: .amd64).map(\.verdict) == [.allow, .allow])
        #expect(policy.rules(for: .aarch64).map(\.verdict) == [.fail(errno: 38), .allow])
        #expect(policy.rules(for: .aarch64).map(\.name) == ["poll", "ppoll"])
    }

    @Test("a dangerous call is taken with its reason on its line or directly above, and the reason is kept")
    func reasons() throws {
        #expect(try seccomp("mmap: allow # buffers").rules[0].reason == "buffers")
        #expect(try seccomp("# for\n# buffers\nmmap: allow").rules[0].reason == "for buffers")
        #expect(try seccomp("?io_uring_future: allow # later").rules[0].isOptional)
    }

    @Test(
        "a dangerous call without a reason is refused",
        arguments: [
            "clone", "clone3", "mmap", "mprotect", "ioctl", "prctl", "socket", "execve", "execveat", "ptrace", "mount",
            "open", "openat", "openat2", "open_by_handle_at", "seccomp", "io_uring_setup", "io_uring_enter", "fork",
        ])
    func missingReasons(name: String) {
        let message = "\(name) has no comment; expected its reason after '#', on this line or directly above"
        for text in ["\(name): allow", "\(name): return ENOSYS # ...", "# not above\n\n\(name): allow"] {
            #expect(refusal { () throws(PolicyError) in _ = try seccomp(text) }.hasSuffix(message), "\(text)")
        }
        // The comment of one rule does not belong to the next.
        #expect(
            refusal { () throws(PolicyError) in _ = try seccomp("# read\nread: allow\n\(name): allow") }
                == "3:1 \(message)")
    }

    @Test(
        "what is not in the grammar is refused at its line and column, with what was expected",
        arguments: [
            ("", "1:1 no rule; expected at least one"),
            ("# nothing\n\n", "1:1 no rule; expected at least one"),
            ("read", "1:5 found the end of the line; expected ':' after 'read'"),
            ("READ: allow", "1:1 found 'READ: allow'; expected the name of a system call, @include, @arch or '}'"),
            (
                "read: allow\n 7up: allow",
                "2:2 found '7up: allow'; expected the name of a system call, @include, @arch or '}'"
            ),
            ("? : allow", "1:3 found ': allow'; expected the name of a system call, @include, @arch or '}'"),
            ("read:", "1:6 found the end of the line; expected 'allow', 'return' or an argument (arg0 to arg5)"),
            ("read: allowed", "1:7 found 'allowed'; expected 'allow', 'return' or an argument (arg0 to arg5)"),
            ("read: 1", "1:7 found '1'; expected 'allow', 'return' or an argument (arg0 to arg5)"),
            ("read: allow arg0 == 1", "1:13 found 'arg0 == 1'; expected the end of the line after 'allow'"),
            ("read: return", "1:13 found the end of the line; expected an errno after 'return', such as ENOSYS"),
            (
                "read: return EFUN",
                "1:14 found 'EFUN'; expected an errno that ubd knows (a name such as ENOSYS, or 1 to 4095)"
            ),
            (
                "read: return 0",
                "1:14 found '0'; expected an errno that ubd knows (a name such as ENOSYS, or 1 to 4095)"
            ),
            (
                "read: return 4096",
                "1:14 found '4096'; expected an errno that ubd knows (a name such as ENOSYS, or 1 to 4095)"
            ),
            ("read: arg6 == 1", "1:7 found 'arg6 == 1'; expected 'allow', 'return' or an argument (arg0 to arg5)"),
            ("read: arg0 = 1", "1:12 found '= 1'; expected '==', 'in' or '&' after arg0"),
            ("read: arg0 != 1", "1:12 found '!= 1'; expected '==', 'in' or '&' after arg0"),
            ("read: arg0 && arg1 == 2", "1:12 found '&& arg1 == 2'; expected '==', 'in' or '&' after arg0"),
            ("read: arg0 inPROT_EXEC", "1:12 found 'inPROT_EXEC'; expected '==', 'in' or '&' after arg0"),
            ("read: arg0 ==", "1:14 found the end of the line; expected a number or the name of a constant"),
            ("read: arg0 == -1", "1:15 found '-1'; expected a number or the name of a constant"),
            (
                "read: arg0 == PROT_EXECUTE",
                "1:15 found 'PROT_EXECUTE'; expected a constant that ubd knows (Sources/Shared/Policy/Seccomp/SystemConstants.swift)"
            ),
            (
                "read: arg0 == 08",
                "1:15 found '08'; expected a decimal number (no leading 0) or 0x and hexadecimal digits, below 2^64"
            ),
            (
                "read: arg0 == 0xg",
                "1:15 found '0xg'; expected a decimal number (no leading 0) or 0x and hexadecimal digits, below 2^64"
            ),
            (
                "read: arg0 == 18446744073709551616",
                "1:15 found '18446744073709551616'; expected a decimal number (no leading 0) or 0x and hexadecimal digits, below 2^64"
            ),
            ("read: arg0 == 1 | ", "1:19 found the end of the line; expected a number or the name of a constant"),
            ("read: arg0 == 1 2", "1:17 found '2'; expected '&&', '||', '; return ERRNO' or the end of the line"),
            (
                "read: arg0 == 1 ||",
                "1:19 found the end of the line; expected 'allow', 'return' or an argument (arg0 to arg5)"
            ),
            ("read: arg0 == 1; allow", "1:18 found 'allow'; expected 'return ERRNO' after ';'"),
            ("read: arg0 & 3", "1:14 '&' tests one bit, 0x3 has 2; join tests with && or ||"),
            ("read: arg0 & 0", "1:14 '&' tests one bit, 0x0 has 0; join tests with && or ||"),
            (
                "read: arg0 in ~PROT_EXEC|PROT_READ",
                "1:26 found 'PROT_READ'; expected parentheses around the constants: ~(A|B)"
            ),
            ("read: arg0 in ~(1|2", "1:20 found the end of the line; expected '|' or ')'"),
            ("read: arg0 in ~0", "1:16 every value of arg0 passes; write 'allow'"),
            ("read: arg0 in 0xffffffffffffffff", "1:15 every value of arg0 passes; write 'allow'"),
            ("read: arg0 == 1 && arg0 == 2", "1:20 this contradicts the earlier test of arg0"),
            ("read: arg0 & 4 && arg0 in ~4", "1:19 this contradicts the earlier test of arg0"),
            ("read: arg0 == 1 || arg0 == 1", "1:20 this alternative is in the rule already"),
            ("read: allow\nread: allow", "2:1 read has a rule at a.policy:1:1 already; expected one rule per call"),
            (
                "read: allow\n@arch x86_64 {\nread: allow\n}",
                "3:1 read has a rule at a.policy:1:1 already; expected one rule per call"
            ),
            (
                "write: allow\n@include b.policy",
                "1:1 write has a rule at a.policy:1:1 already; expected one rule per call"
            ),
            (
                "@include",
                "1:9 found the end of the line; expected a file name of this folder (letters, digits, '.', '-', '_'; no leading '.') after @include"
            ),
            (
                "@include ../b.policy",
                "1:10 found '../b.policy'; expected a file name of this folder (letters, digits, '.', '-', '_'; no leading '.') after @include"
            ),
            ("@include sub/b.policy", "1:13 found '/b.policy'; expected the end of the line after @include sub"),
            ("@include c.policy", "1:10 cannot read 'c.policy': no such file"),
            (
                "@includeb.policy",
                "1:1 found '@includeb.policy'; expected the name of a system call, @include, @arch or '}'"
            ),
            ("@arch x86_64 {\n@include b.policy\n}", "2:1 @include inside @arch; expected it outside of the block"),
            ("@arch riscv64 {", "1:7 found 'riscv64 {'; expected x86_64 or aarch64 after @arch"),
            ("@arch x86_64", "1:13 found the end of the line; expected '{' after @arch x86_64"),
            ("read: allow\n@arch x86_64 {", "2:1 @arch is not closed; expected a line '}'"),
            ("@arch x86_64 {\n@arch aarch64 {", "2:1 @arch inside the @arch of a.policy:1:1"),
            ("}", "1:1 '}' without an open @arch"),
            (
                "@default allow",
                "1:1 found '@default allow'; expected the name of a system call, @include, @arch or '}'"
            ),
            ("read: allow\r\n", "1:12 byte 0xd; expected printable ASCII (any UTF-8 in a comment)"),
            ("read: allow # \u{1b}[2J", "1:15 byte 0x1b; expected printable ASCII (any UTF-8 in a comment)"),
            ("réad: allow", "1:2 byte 0xc3; expected printable ASCII (any UTF-8 in a comment)"),
        ])
    func refusals(text: String, expected: String) {
        #expect(refusal { () throws(PolicyError) in _ = try seccomp(text, include: "write: allow") } == expected)
    }

    @Test("an included file may not include another, and its mistakes are reported under its name")
    func nesting() {
        #expect(
            refusal { () throws(PolicyError) in _ = try seccomp("@include b.policy", include: "@include a.policy") }
                == "1:1 an included file includes another; expected rules only (includes go one level deep)")
        #expect(throws: PolicyError(PolicyLocation(file: "b.policy", line: 1, column: 1), "'}' without an open @arch"))
        {
            try seccomp("@include b.policy", include: "}")
        }
    }

    @Test("a comment that is not UTF-8 is refused, one that is may hold anything printable")
    func encoding() throws {
        #expect(try seccomp("read: allow # für später").rules.count == 1)
        #expect(
            refusal { () throws(PolicyError) in
                _ = try SeccompPolicy(parsing: "a") { _ in Array("read: allow # ".utf8) + [0xC3, 0x28] }
            } == "1:13 the comment is not valid UTF-8")
    }

    @Test("a file of more than 64 KiB and a policy of more than 400 rules are refused")
    func bounds() throws {
        let comment = "read: allow #" + String(repeating: "x", count: 65536 - 13)
        #expect(try seccomp(comment).rules.count == 1)
        #expect(
            refusal { () throws(PolicyError) in _ = try seccomp(comment + "x") }
                == "1:1 the file has 65537 bytes; a policy has at most 65536")
        func rules(_ count: Int) -> String { (0..<count).map { "call\($0): allow" }.joined(separator: "\n") }
        #expect(try seccomp(rules(400)).rules.count == 400)
        #expect(refusal { () throws(PolicyError) in _ = try seccomp(rules(401)) } == "401:1 more than 400 rules")
        let many = (0..<33).map { "arg0 == \($0)" }.joined(separator: "||")
        #expect(
            refusal { () throws(PolicyError) in _ = try seccomp("read: " + many) }
                .hasSuffix("more than 32 alternatives in one rule"))
    }
}
