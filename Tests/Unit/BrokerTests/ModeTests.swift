import BrokerInterface
import KernelABI
import Targets
import Testing
import WorkerProtocol

@testable import ubd_broker

@Suite("The mode of a device")
struct ModeTests {
    private static let zeroCopy: UblkFeatures = [.supportZeroCopy, .autoBufferRegistration]
    private static let everything = zeroCopy.union(.batchIO)

    private func choose(
        _ mode: String?, target: String = "loop", kernel: UblkFeatures = everything, granted: Bool = true,
        depth: Int64? = nil
    ) throws(InterfaceError) -> DataMode {
        let plan = try AddPlan(AddRequest(target: target, depth: depth, mode: mode))
        return try ModeChoice(kernel: kernel, zeroCopyGranted: granted, rule: "allow uid=0 target=*").mode(for: plan)
    }

    @Test("is the best that kernel, policy and target allow, when none is asked for", arguments: [nil, "auto"])
    func best(mode: String?) throws {
        #expect(try choose(mode) == .batchZeroCopy)
        #expect(try choose(mode, granted: false) == .batch)
        #expect(try choose(mode, kernel: Self.zeroCopy) == .zeroCopy)
        #expect(try choose(mode, kernel: Self.zeroCopy, granted: false) == .copy)
        #expect(try choose(mode, kernel: [.batchIO]) == .batch)
        // Buffers that the driver does not register by itself would cost two more commands for each request.
        #expect(try choose(mode, kernel: [.supportZeroCopy]) == .copy)
        #expect(try choose(mode, kernel: []) == .copy)
        #expect(try choose(mode, target: "null") == .batch)
        #expect(try choose(mode, target: "null", kernel: Self.zeroCopy) == .copy)
    }

    @Test("is the one that is asked for, where it can be had", arguments: DataMode.allCases)
    func asked(mode: DataMode) throws {
        for target in ["null", "loop"] { #expect(try choose(mode.rawValue, target: target) == mode) }
    }

    @Test("is no batch at depth 1, which the kernel has not: another is chosen, and one that is asked for is refused")
    func depthOne() throws {
        #expect(try choose(nil, depth: 1) == .zeroCopy)
        #expect(try choose(nil, granted: false, depth: 1) == .copy)
        #expect(try choose(nil, depth: 2) == .batchZeroCopy)
        for mode in ["batch", "batch-zero-copy"] {
            let error = #expect(throws: InterfaceError.self) { try choose(mode, depth: 1) }
            guard case .invalidOption(let message, _, "depth", "1")? = error else {
                Issue.record("\(String(describing: error))")
                continue
            }
            #expect(message.contains(mode))
        }
    }

    @Test("that the kernel lacks is refused with the feature's name and the kernel that has it")
    func kernelLacks() throws {
        #expect(try choose("copy", kernel: []) == .copy)
        let missing: [(mode: DataMode, feature: String, since: String)] = [
            (.zeroCopy, "SUPPORT_ZERO_COPY,AUTO_BUF_REG", "Linux 6.16"), (.batch, "BATCH_IO", "Linux 7.0"),
            (.batchZeroCopy, "SUPPORT_ZERO_COPY,AUTO_BUF_REG,BATCH_IO", "Linux 7.0"),
        ]
        for (mode, feature, since) in missing {
            // Of several obstacles the kernel is named first, since no administrator could help.
            let error = #expect(throws: InterfaceError.self) { try choose(mode.rawValue, kernel: [], granted: false) }
            guard case .kernelUnsupported(let message, let remedy, feature)? = error else {
                Issue.record("\(String(describing: error))")
                continue
            }
            #expect(message.contains(mode.rawValue))
            #expect(remedy.contains(since))
        }
    }

    @Test("without a copy is refused to those whom the policy does not grant it, with their rule")
    func notGranted() throws {
        for mode in ["zero-copy", "batch-zero-copy"] {
            let error = #expect(throws: InterfaceError.self) { try choose(mode, granted: false) }
            guard case .notPermitted(let message, _, "allow uid=0 target=*")? = error else {
                Issue.record("\(String(describing: error))")
                continue
            }
            #expect(message.contains("zero-copy=yes"))
        }
        #expect(try choose("batch", granted: false) == .batch)
    }

    @Test("that nobody knows is refused with the names of those that there are")
    func unknown() {
        let error = #expect(throws: InterfaceError.self) { try choose("fast") }
        guard
            case .invalidOption(_, "give one of: copy, zero-copy, batch, batch-zero-copy, auto", "mode", "fast")? =
                error
        else {
            Issue.record("\(String(describing: error))")
            return
        }
    }

    @Test("is what ADD_DEV, the worker, the record and the owner are told")
    func told() throws {
        let host = try Host(policy: "allow uid=1000 target=* zero-copy=yes\n")
        host.kernel.features = Self.everything
        let (device, _) = try host.add(AddRequest(target: "null", mode: "batch-zero-copy")).get()
        #expect(device.mode == .batchZeroCopy)
        #expect(try #require(host.kernel.devices[0]).features.isSuperset(of: Self.everything))
        #expect(host.workers[0].launch?.mode == .batchZeroCopy)
        #expect(try host.broker.store.load().records.map(\.launch?.mode) == [.batchZeroCopy])
        #expect(try host.add(AddRequest(target: "null")).get().0.mode == .batch)
        #expect(try #require(host.kernel.devices[1]).features.intersection(Self.everything) == [.batchIO])
    }

    @Test("that the driver promised and then dropped fails the add")
    func dropped() throws {
        let host = try Host()
        host.kernel.features = [.batchIO]
        host.kernel.unknownFeatures = [.batchIO]
        let result = try host.add()
        guard case .failure(.kernelUnsupported(_, _, "BATCH_IO")) = result else {
            Issue.record("\(result)")
            return
        }
        #expect(host.leftovers == [])
    }

    @Test("without a copy asks users for memory that the backing file can take")
    func alignment() {
        let geometry = Geometry(size: 1 << 20, logicalBlock: 512, physicalBlock: 4096)
        #expect(DiskParameters.make(geometry, maxIOBytes: 4096, mode: .zeroCopy).dmaAlignmentMask == 511)
        #expect(DiskParameters.make(geometry, maxIOBytes: 4096, mode: .batch).dmaAlignmentMask == nil)
    }
}
