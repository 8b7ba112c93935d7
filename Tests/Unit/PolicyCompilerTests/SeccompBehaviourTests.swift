import Policy
import PolicyCompiler
import Testing

@Suite("The shipped seccomp policies")
struct SeccompBehaviourTests {
    /// Compares the results of a filter with the policy's text.
    private func compare(
        _ policy: SeccompPolicy, _ calls: [SystemCall], _ fates: [Fate], _ architecture: Architecture = .native
    ) {
        for (call, fate) in zip(calls, fates) {
            #expect(fate == policy.fate(of: call, architecture), "\(policy.name): \(call)")
        }
    }

    @Test(
        "every rule passes with its arguments and kills with others, on the running kernel",
        arguments: shippedPolicyNames)
    func rules(name: String) throws {
        let policy = try shippedPolicy(name)
        let calls = policy.probes(.native)
        let fates = try SeccompProbe.fates(of: calls, under: try SeccompCompiler.compile(policy))
        compare(policy, calls, fates)
        // Every rule was exercised: each allows or refuses a call, and each rule with tests also kills one.
        for rule in policy.rules(for: .native) {
            let seen = Set(zip(calls, fates).filter { $0.0.number == SystemCall.number(rule.name) }.map(\.1))
            switch rule.verdict {
            case .allow: #expect(seen == [.passes], "\(rule.name)")
            case .fail(let errno): #expect(seen == [.fails(errno: Int(errno))], "\(rule.name)")
            case .test: #expect(seen == [.passes, .kills], "\(rule.name)")
            }
        }
    }

    @Test(
        "every rule passes with its arguments and kills with others, on both architectures in the interpreter",
        arguments: shippedPolicyNames, Architecture.allCases)
    func interpretedRules(name: String, architecture: Architecture) throws {
        let policy = try shippedPolicy(name)
        let program = SeccompInterpreter(program: try SeccompCompiler.compile(policy, architecture: architecture))
        let audit = SeccompInterpreter.auditArchitecture(architecture)
        for rule in policy.rules(for: architecture) {
            #expect(SystemCall.number(rule.name, architecture) != nil, "\(rule.name)")
        }
        let calls = policy.probes(architecture) + (0...600).map { SystemCall(number: $0) }
        compare(
            policy, calls, try calls.map { try program.fate(of: $0, auditArchitecture: audit) }, architecture)
    }

    @Test("no policy is left out: stage A, the loop, and a stage B for each target")
    func names() {
        #expect(
            Set([
                "worker-setup", "worker-loop", "target-null", "target-loop", "target-nbd", "target-memory",
                "target-crypt",
            ]).isSubset(
                of: shippedPolicyNames))
        #expect(
            targetPolicyNames == [
                "target-crypt", "target-fault", "target-loop", "target-memory", "target-nbd", "target-null",
                "target-overlay",
            ])
    }

    @Test(
        "behind both stages a call passes when both let it, and every other kills, on the running kernel",
        arguments: targetPolicyNames)
    func bothStages(target: String) throws {
        let policies = [try shippedPolicy("worker-setup"), try shippedPolicy(target)]
        // Without the two that this kernel may keep from every filter (below).
        let numbers = (0...600).filter { ![335, 336].contains($0) }.map { SystemCall(number: $0) }
        let calls = policies.flatMap { $0.probes(.native) } + numbers
        let fates = try SeccompProbe.fates(of: calls, under: try policies.map { try SeccompCompiler.compile($0) })
        for (call, fate) in zip(calls, fates) {
            #expect(fate == together(policies.map { $0.fate(of: call, .native) }), "\(target): \(call)")
        }
        #expect(Set(fates) == [.passes, .kills])
    }

    @Test("every system call from 0 to 500 that is not listed kills", arguments: shippedPolicyNames)
    func unlisted(name: String) throws {
        let policy = try shippedPolicy(name)
        let listed = Set(policy.rules(for: .native).compactMap { SystemCall.number($0.name) })
        let calls = (0...500).filter { !listed.contains($0) }.map { SystemCall(number: $0) }
        #expect(calls.count == 501 - listed.count)
        let fates = try SeccompProbe.fates(of: calls, under: try SeccompCompiler.compile(policy))
        for (call, fate) in zip(calls, fates) where fate != .kills {
            // Kernels that run uprobes through system calls of their own keep these two from every filter (x86_64,
            // kernel/seccomp.c); made by anybody but the kernel's trampoline they do nothing.
            let isExempt = Architecture.native == .amd64 && [335, 336].contains(call.number)
            #expect(isExempt && [.fails(errno: 6), .dies(signal: 4)].contains(fate), "\(name): call \(call.number)")
        }
    }

    #if arch(x86_64)
        @Test("every listed call kills with the x32 bit", arguments: shippedPolicyNames)
        func x32(name: String) throws {
            let policy = try shippedPolicy(name)
            let calls = policy.rules(for: .native).compactMap { SystemCall.number($0.name) }
                .map { SystemCall(number: $0 | 0x4000_0000, arguments: [3, 0, 0, 0, 0, 0]) }
            let fates = try SeccompProbe.fates(of: calls, under: try SeccompCompiler.compile(policy))
            #expect(fates == calls.map { _ in .kills })
        }

        @Test("every call through the i386 entry kills", arguments: shippedPolicyNames)
        func i386(name: String) throws {
            let calls = (0...500).map { SystemCall(number: $0, arguments: [3, 0, 0, 0, 0, 0]) }
            let filter = try SeccompCompiler.compile(try shippedPolicy(name))
            let fates = try SeccompProbe.fates(of: calls, under: filter, throughInt80: true)
            #expect(fates == calls.map { _ in .kills })
        }
    #endif

    @Test(
        "a filter for one architecture kills every call of another", arguments: shippedPolicyNames,
        Architecture.allCases)
    func otherArchitecture(name: String, architecture: Architecture) throws {
        let policy = try shippedPolicy(name)
        let program = SeccompInterpreter(program: try SeccompCompiler.compile(policy, architecture: architecture))
        // i386, arm and the other supported architecture.
        let others: [UInt32] =
            [0x4000_0003, 0x4000_0028]
            + Architecture.allCases.filter { $0 != architecture }.map(SeccompInterpreter.auditArchitecture)
        for audit in others {
            for number in 0...UInt64(500) {
                #expect(try program.fate(of: SystemCall(number: number), auditArchitecture: audit) == .kills)
            }
        }
    }

    @Test(
        "stage A lets through whatever a stage B lets through", arguments: targetPolicyNames, Architecture.allCases)
    func stages(target: String, architecture: Architecture) throws {
        let setup = try shippedPolicy("worker-setup")
        let stageB = try shippedPolicy(target)
        let passing = stageB.probes(architecture).filter { stageB.fate(of: $0, architecture) == .passes }
        #expect(!passing.isEmpty)
        for call in passing { #expect(setup.fate(of: call, architecture) == .passes, "\(call)") }
    }

    @Test("the broker's own filter lets through whatever a worker's stage A does", arguments: Architecture.allCases)
    func inherited(architecture: Architecture) throws {
        let (broker, setup) = try (shippedPolicy("broker"), shippedPolicy("worker-setup"))
        let passing = setup.probes(architecture).filter { setup.fate(of: $0, architecture) == .passes }
        #expect(!passing.isEmpty)
        for call in passing { #expect(broker.fate(of: call, architecture) == .passes, "\(call)") }
    }

    @Test("io_uring_enter is let through without a look at its arguments, so that the kernel runs no filter for it")
    func dataPath() throws {
        for name in targetPolicyNames + ["worker-setup", "worker-loop"] {
            let rule = try #require(try shippedPolicy(name).rules.first { $0.name == "io_uring_enter" })
            #expect(rule.verdict == .allow)
        }
    }

    private func filter(_ name: String) throws -> FilterProgram { try SeccompCompiler.compile(try shippedPolicy(name)) }

    @Test("under stage A glibc can make a thread")
    func thread() throws {
        let end = try SeccompProbe.scenario("thread", [filter("worker-setup")])
        #expect(end == .exited(0))
    }

    @Test("under stage A fork kills")
    func fork() throws {
        let end = try SeccompProbe.scenario("fork", [filter("worker-setup")])
        #expect(end == .signalled(31))
    }

    @Test("stage A can load stage B on all threads; then rings can be entered", arguments: ["null", "loop"])
    func seal(target: String) throws {
        let filters = try [filter("worker-setup"), filter("target-\(target)")]
        let end = try SeccompProbe.scenario("sealed", filters)
        #expect(end == .exited(0))
    }

    @Test("under stage B no thread can be made")
    func sealedThread() throws {
        let filters = try [filter("worker-setup"), filter("target-loop")]
        let end = try SeccompProbe.scenario("sealed-thread", filters)
        #expect(end == .signalled(31))
    }

    @Test("under stage B threads that wait in read survive SIGSTOP and SIGCONT")
    func stopped() throws {
        let filters = try [filter("worker-setup"), filter("target-loop")]
        let end = try SeccompProbe.scenario("stopped", filters)
        #expect(end == .exited(0))
    }
}
