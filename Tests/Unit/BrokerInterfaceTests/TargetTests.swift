import Targets
import Testing

@testable import BrokerInterface

@Suite("A size")
struct ByteSizeTests {
    @Test("on the wire is plain decimal bytes")
    func decimal() {
        #expect(ByteSize.decimal("0") == 0)
        #expect(ByteSize.decimal("4096") == 4096)
        #expect(ByteSize.decimal("9223372036854775807") == ByteSize.maximum)
        for text in ["", "4K", "+1", "-1", " 1", "1 ", "01", "0x10", "1.5", "٣", "1_000", "1e3"] {
            #expect(ByteSize.decimal(text) == nil, "\(text)")
        }
    }

    @Test("on the command line may have a unit of a power of 1024")
    func typed() {
        for (text, bytes) in [
            ("0", 0), ("512", 512), ("4K", 4096), ("4k", 4096), ("1M", 1 << 20), ("250G", 250 << 30), ("2T", 2 << 40),
            ("1KiB", 1024), ("1mib", 1 << 20), ("0T", 0),
        ] as [(String, UInt64)] {
            #expect(ByteSize.typed(text) == bytes, "\(text)")
        }
        for text in ["", "K", "1KB", "1B", "1iB", "1KK", "1 K", "-1K", "1.5K", "K1", "1P", "01K"] {
            #expect(ByteSize.typed(text) == nil, "\(text)")
        }
    }

    @Test("that is no sector's number is refused, and not taken for the largest one")
    func sectors() throws {
        func options(_ first: String) throws -> DeviceOptions {
            try DeviceOptions(target: .crypt, options: [OptionValue("first-sector", first)])
        }
        #expect(try options("18014398509481976").firstSector == TargetOption.largestSize >> 9)
        for text in ["18014398509481977", "9223372036854775807", "18446744073709551615", "-1"] {
            #expect(throws: InterfaceError.self) { try options(text) }
        }
    }

    @Test("beyond 64 bits becomes the largest size instead of a small one")
    func saturates() {
        for text in ["9223372036854775808", "18446744073709551616", "99999999999999999999999"] {
            #expect(ByteSize.decimal(text) == ByteSize.maximum)
        }
        for text in ["8388608T", "16777216T", "18446744073709551615K", "99999999999999999999T"] {
            #expect(ByteSize.typed(text) == ByteSize.maximum, "\(text)")
        }
    }

    @Test("is shown with one decimal, never larger than it is")
    func text() {
        for (bytes, text) in [
            (0, "0 B"), (512, "512 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (1025, "1 KiB"),
            (2047, "1.9 KiB"), (250 << 30, "250 GiB"), (UInt64.max, "15.9 EiB"),
        ] as [(UInt64, String)] {
            #expect(ByteSize.text(bytes) == text)
        }
    }
}

@Suite("The options of a target")
struct TargetOptionsTests {
    private func options(_ target: String, _ list: [(String, String)]) throws(InterfaceError) -> DeviceOptions {
        try DeviceOptions(
            target: try TargetManifest.named(target), options: list.map { OptionValue($0.0, $0.1) })
    }

    @Test("have the defaults that the help tells")
    func defaults() throws {
        let null = try options("null", [])
        #expect(null.size == 250 << 30 && null.blockSize == 512 && null.offset == 0 && !null.buffered)
        #expect(try options("loop", []) == DeviceOptions())
    }

    @Test("are read into their types")
    func read() throws {
        let loop = try options(
            "loop", [("offset", "4096"), ("size", "8192"), ("block-size", "4096"), ("buffered", "true")])
        #expect(loop.offset == 4096 && loop.size == 8192 && loop.blockSize == 4096 && loop.buffered)
        #expect(try options("null", [("size", "512")]).size == 512)
    }

    @Test(
        "are refused with the option, its value and what would do",
        arguments: [
            ("null", "size", "0"), ("null", "size", "513"), ("null", "size", "-512"), ("null", "size", "1G"),
            ("null", "size", "9223372036854775808"), ("null", "size", ""), ("null", "block-size", "256"),
            ("null", "block-size", "1536"), ("null", "block-size", "8192"), ("loop", "offset", "100"),
            ("loop", "buffered", "yes"), ("loop", "buffered", "TRUE"), ("loop", "buffered", ""),
        ])
    func refused(target: String, option: String, value: String) {
        let error = #expect(throws: InterfaceError.self) { try options(target, [(option, value)]) }
        guard case .invalidOption(let message, let remedy, let named, let shown)? = error else {
            Issue.record("\(String(describing: error))")
            return
        }
        #expect(named == option && shown == value)
        #expect(message.contains(option) && message.contains(value))
        #expect(remedy.hasPrefix("give "))
    }

    @Test("of one target are not taken by another")
    func unknown() {
        for (target, option) in [("null", "offset"), ("null", "buffered"), ("loop", "Size"), ("loop", "block_size")] {
            let error = #expect(throws: InterfaceError.self) { try options(target, [(option, "512")]) }
            #expect(error?.remedy.contains("block-size") == true)
        }
    }

    @Test("must fit each other")
    func together() {
        for (list, wrong) in [
            ([("size", "512"), ("block-size", "4096")], "size"),
            ([("offset", "512"), ("block-size", "4096")], "offset"),
            ([("offset", "9223372036854771712"), ("size", "4096")], "size"),
        ] {
            let error = #expect(throws: InterfaceError.self) { try options("loop", list) }
            guard case .invalidOption(_, _, wrong, _)? = error else {
                Issue.record("\(wrong): \(String(describing: error))")
                continue
            }
        }
    }

    @Test("never carry a stranger's control characters into a message")
    func printable() {
        let error = #expect(throws: InterfaceError.self) { try options("null", [("size", "1\u{1B}[2J\n")]) }
        #expect(error?.message.unicodeScalars.contains { $0.value < 0x20 } == false)
        let target = #expect(throws: InterfaceError.self) {
            try TargetManifest.named(String(repeating: "x\n", count: 1000))
        }
        #expect((target?.message.count ?? 999) < 120)
    }
}

@Suite("The plan of a device")
struct AddPlanTests {
    @Test("has ublksrv's defaults")
    func defaults() throws {
        let plan = try AddPlan(AddRequest(target: "null"))
        #expect(plan.queues == 1 && plan.depth == 128 && plan.maxIOBytes == 512 << 10)
        #expect(!plan.readOnly && plan.id == nil && plan.fileName == nil)
        #expect(plan.mostDescriptors(queues: 1) == 0)
        #expect(plan.bufferBytes == 64 << 20)
    }

    @Test("a worker that serves keeps all its descriptors but a secret's")
    func kept() throws {
        for target in TargetList.all {
            let options = try DeviceOptions(target: target, options: [])
            let secrets = target.takesSecret ? 1 : 0
            #expect(
                target.keptDescriptors(options, queues: 2).upperBound
                    == target.descriptors(options, queues: 2).upperBound - secrets)
        }
        let options = try DeviceOptions(target: .crypt, options: [])
        #expect(TargetManifest.crypt.keptDescriptors(options, queues: 2) == 1...1)
    }

    @Test("counts the spare buffers of target nbd: 8 for each queue, but no more than its depth")
    func spareBuffers() throws {
        #expect(TargetManifest.null.buffers(depth: 128) == 128 && TargetManifest.loop.buffers(depth: 4) == 4)
        #expect(TargetManifest.nbd.buffers(depth: 128) == 136 && TargetManifest.nbd.buffers(depth: 4) == 8)
        #expect(TargetManifest.nbd.spareBuffers == TargetManifest.nbdSpareBuffers)
    }

    @Test("counts the cache of target fault as memory of the device")
    func caches() throws {
        let without = try AddPlan(AddRequest(target: "fault"))
        let with = try AddPlan(AddRequest(target: "fault", options: [OptionValue("cache", "1048576")]))
        #expect(without.bufferBytes == 64 << 20 && with.bufferBytes == 65 << 20)
        #expect(TargetManifest.loop.cacheBytes(with.options) == 0)
    }

    @Test("takes a connection for each queue that the kernel gives, and no other number, 16 at most")
    func connections() throws {
        func plan(_ queues: Int64, connections: String? = nil) throws -> AddPlan {
            let options = [OptionValue("size", "4096")] + (connections.map { [OptionValue("connections", $0)] } ?? [])
            return try AddPlan(AddRequest(target: "nbd", queues: queues, options: options))
        }
        #expect(try plan(4).mostDescriptors(queues: 4) == 4 && plan(4).mostDescriptors(queues: 2) == 2)
        #expect(try plan(16, connections: "16").queues == 16)
        for (queues, connections, option) in [(17, nil, "queues"), (2, "3", "connections"), (1, "0", "connections")]
            as [(Int64, String?, String)]
        {
            let error = #expect(throws: InterfaceError.self) { try plan(queues, connections: connections) }
            guard case .invalidOption(_, _, option, _)? = error else {
                Issue.record("\(queues) \(String(describing: error))")
                continue
            }
        }
        // What a worker is told of it: the kernel may have given fewer.
        #expect(try plan(2, connections: "2").options.served == plan(2).options)
    }

    @Test("says how many descriptors may come: none, the buffered file, or both")
    func files() throws {
        #expect(try AddPlan(AddRequest(target: "loop")).mostDescriptors(queues: 4) == 2)
        let buffered = AddRequest(target: "loop", options: [OptionValue("buffered", "true")])
        #expect(try AddPlan(buffered).mostDescriptors(queues: 4) == 1)
    }

    @Test("accepts the ends of every range and nothing beyond")
    func ranges() throws {
        let cases: [(String, WritableKeyPath<AddRequest, Int64?>, [Int64], [Int64])] = [
            ("id", \.id, [0, 1_048_575], [-1, 1_048_576, .max]), ("queues", \.queues, [1, 4096], [0, -1, 4097, .min]),
            ("depth", \.depth, [1, 4096], [0, 4097]),
            ("maxIOBytes", \.maxIOBytes, [4096, 32 << 20], [0, 4095, 4097, 6000, (32 << 20) + 4096]),
        ]
        for (name, path, good, bad) in cases {
            var request = AddRequest(target: "null")
            for value in good {
                request[keyPath: path] = value
                _ = try AddPlan(request)
            }
            for value in bad {
                request[keyPath: path] = value
                let error = #expect(throws: InterfaceError.self) { try AddPlan(request) }
                guard case .invalidOption(_, _, name, String(value))? = error else {
                    Issue.record("\(name) \(value): \(String(describing: error))")
                    continue
                }
            }
        }
    }

    @Test("at its largest does not overflow the count of its memory")
    func largest() throws {
        let plan = try AddPlan(AddRequest(target: "null", queues: 4096, depth: 4096, maxIOBytes: 32 << 20))
        #expect(plan.bufferBytes == 1 << 49)
    }

    @Test("takes a label that is safe to show, for a target with a file")
    func fileName() throws {
        #expect(try AddPlan(AddRequest(target: "loop", fileName: "größe 1.img")).fileName == "größe 1.img")
        for name in ["", "a\nb", "\u{1B}[2J", "a\u{7F}", "a\u{85}", String(repeating: "x", count: 1025)] {
            #expect(throws: InterfaceError.self, "\(name)") { try AddPlan(AddRequest(target: "loop", fileName: name)) }
        }
        #expect(throws: InterfaceError.self) { try AddPlan(AddRequest(target: "null", fileName: "x")) }
    }

    @Test("of an unknown target lists the known ones")
    func unknownTarget() {
        for name in ["", "Loop", "iscsi", "loop "] {
            let error = #expect(throws: InterfaceError.self) { try AddPlan(AddRequest(target: name)) }
            #expect(error?.remedy == "use one of: null, loop, nbd, memory, crypt, overlay, fault")
        }
    }
}

@Suite("The kernel's features")
struct KernelFeatureTests {
    @Test("are listed bit by bit, without a gap")
    func bits() {
        #expect(KernelFeature.all.map(\.bit) == Array(0..<KernelFeature.all.count))
        #expect(Set(KernelFeature.all.map(\.name)).count == KernelFeature.all.count)
    }

    @Test("of the tested kernels are all known")
    func known() {
        // GET_FEATURES of 6.12.95 and 7.3.4 (docs/kernel-facts.md#feature-releases).
        #expect(KernelFeature.names(in: 0x1FE).count == 8)
        #expect(KernelFeature.unknownBits(in: 0x1F_FFFF) == 0)
        #expect(KernelFeature.unknownBits(in: 0x1FE | 1 << 40) == 1 << 40)
    }

    @Test("are used or ignored, and always-on ones have the bits that 7.3 reports")
    func ignored() {
        let bits: UInt64 = 0x1F_FFFF
        let ignored = KernelFeature.ignoredNames(in: bits)
        #expect(!ignored.contains("user-recovery") && ignored.contains("zoned"))
        #expect(
            KernelFeature.names(in: 0x2_6042) == [
                "uring-cmd-comp-in-task", "cmd-ioctl-encode", "per-io-daemon", "buf-reg-off-daemon", "safe-stop-dev",
            ])
    }
}
