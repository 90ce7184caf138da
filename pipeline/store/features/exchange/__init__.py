"""Features to and from the formats that others read, or have published.

| format     | what it is                                                                | module     | ways     |
|------------|---------------------------------------------------------------------------|------------|----------|
| webdataset | tars of `key.json` and `key.<column>.npy`: a whole store, and back        | webdataset | out, in  |
| uniter-npz | an .npz an image: UNITER's members, or bottom-up-attention.pytorch's      | uniter_npz | out, in  |
| lxmert-tsv | TSV with base64: LXMERT's ten fields, or bottom-up attention's six        | lxmert_tsv | out, in  |
| hdf5       | a group an image (VOLTA, VL-T5), or arrays over all (bottom-up, BAN)      | hdf5       | in       |

Published files name images by ids of their own and lack most of a store's columns; `published` says what becomes of
them. All of them come from outside: no pickle is read, and no size that a file states is believed unseen.
"""
