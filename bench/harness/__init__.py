"""The measuring harness: marcot beside its peers, on one machine, with one client.

    workloads.py  the rows of the table, as data
    systems.py    marcot and its peers: preparing images, starting servers
    ceph.py       the peer that is a cluster
    fio.py        one run of the client
    rows.py       rounds: which run follows which, and what is put away
    figures.py    medians, paired ratios, spread, floors
    shapes.py     what must be fast in itself and flat, whatever the size
    profile.py    instructions, system calls and copies a request, beside the physical limit
    report.py     tables; picture.py: SVG
    process.py    programs started here, ended here

Only Python's standard library is used.
"""
